"""The way to the pack's kernels for error feedback, all that the engine calls of them.

`kernels` lies beside `quant`: in one package with it, or, where ``python -m quant`` runs in the checkout, both are
packages of their own, and no relative import leads from one to the other. It is imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from ..errors import RecipeError

PACK = __name__.removesuffix("quant.rounding.kernels")
"""Name of the package that both lie in, with its dot, or nothing."""


def feedback() -> ModuleType:
    """`kernels.feedback`."""
    return import_module(f"{PACK}kernels.feedback")


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns KernelError, as for a backend that is unknown or cannot run, into RecipeError."""
    try:
        yield
    except import_module(f"{PACK}kernels.errors").KernelError as error:
        raise RecipeError(str(error)) from None
