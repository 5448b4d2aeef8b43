"""Making ComfyUI call every linear layer's ``forward``, so that hooks see each call.

Newer versions skip it in two ways. They fuse a linear layer with the activation before it (``comfy.ops
.linear_input_act``, where fp16 accumulation is on), unless a flag of the module forbids it. And the Comfy Compiler
replays the memory allocations of a block as it recorded them, which fails where a hook allocates in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

MODULE_FLAGS = ("comfy_force_forward", "_full_precision_mm")
"""Attributes of a linear layer that forbid to fuse it: since 0.39, and in 0.38. Older versions read neither."""

COMPILER_FLAG = "disable_comfy_compiler"
"""The command line option that switches the Comfy Compiler off, where there is one."""


@contextmanager
def plain_forward(model: torch.nn.Module) -> Iterator[None]:
    """Have every `torch.nn.Linear` of ``model`` called one by one in this block; flags are restored after it."""
    from comfy.cli_args import args

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                for flag in MODULE_FLAGS:
                    stack.enter_context(_set_flag(module, flag))
        if hasattr(args, COMPILER_FLAG):
            stack.enter_context(_set_flag(args, COMPILER_FLAG))
        yield


@contextmanager
def _set_flag(owner: Any, name: str) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, True)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
