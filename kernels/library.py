"""Registers custom ops with torch.

ComfyUI imports the pack under its folder's path, and a test or a script may import it once more as a package: the
second import finds the ops of the first and uses them. They hold no state (the backend is an argument), so sharing them
is safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "calibrated_rounding"


def register_op(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as ``torch.ops.calibrated_rounding.<its name>``, unless it is registered already.

    Args:
        schema: Arguments and results of the op, in torch's schema language.
        fake: Makes results of the right shape and dtype without computing them.

    Returns:
        A decorator that replaces the function by the op.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.lstrip("_")
        namespace = getattr(torch.ops, NAMESPACE)
        if not hasattr(namespace, name):
            definition = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=(), schema=schema)
            definition.register_fake(fake)
        op: Callable[..., Any] = getattr(namespace, name).default
        return op

    return decorate
