"""Registration of custom ops.

ComfyUI imports the pack under its folder's path, and a test or a script may import it once more as a package: the
second import finds the ops of the first and uses them. They hold no state (the backend is an argument), so both imports
may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "calibrated_rounding"


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as ``calibrated_rounding::<its name>``, unless that is done already; gives the op.

    ``schema`` is the op's arguments and results; ``fake`` makes results of the right shape and dtype without computing.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.lstrip("_")
        namespace = getattr(torch.ops, NAMESPACE)
        if not hasattr(namespace, name):
            definition = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=(), schema=schema)
            definition.register_fake(fake)
        op: Callable[..., Any] = getattr(namespace, name).default
        return op

    return register
