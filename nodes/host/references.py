"""Following the references of a Python value: closures, arguments, attributes, containers."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Container, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import comfy.model_base
import comfy.model_patcher
from torch import Tensor

LIMIT = 20_000
"""Most values that are looked at: a patch may hold whole models of its own."""

WHOLE = frozenset({"diffusion_model", "apply_model", "cond_stage_model"})
"""Names by which code reaches the weights of a model that it has as a whole."""


def leads_to(start: Any, targets: Container[Any], root: Any) -> bool:
    """Whether a value holds one of ``targets``, directly or through what it refers to.

    A value that holds the whole model counts only if its code names one of `WHOLE`: many patches keep their model to
    read its settings.

    Args:
        start: The value.
        targets: The values to look for.
        root: The whole model; a patcher on it counts as the model.
    """
    queue, seen = deque([start]), {id(start): start}
    while queue and len(seen) < LIMIT:
        value = queue.popleft()
        if value in targets:
            return True
        parts = list(_refer(value))
        if any(_is_whole(part, root) for part in parts) and _uses_weights(value):
            return True
        new = {id(part): part for part in parts if id(part) not in seen and part is not root and not _is_end(part)}
        seen |= new
        queue.extend(new.values())
    return False


def _refer(value: Any) -> Iterator[Any]:
    """The values that a value refers to."""
    if isinstance(value, FunctionType):
        yield from _contents(value)
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
        # The code of a method reads these.
        yield from getattr(value.__self__, "__dict__", {}).values()
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    if hasattr(value, "__dict__"):
        yield from vars(value).values()


def _contents(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue


def _is_end(value: Any) -> bool:
    """Whether to look no further: plain data, code that everybody shares, models as a whole."""
    ends = (str, bytes, int, float, complex, type(None), Tensor, type, ModuleType)
    return isinstance(value, (*ends, comfy.model_patcher.ModelPatcher, comfy.model_base.BaseModel))


def _is_whole(value: Any, root: Any) -> bool:
    return value is root or (isinstance(value, comfy.model_patcher.ModelPatcher) and value.model is root)


def _uses_weights(value: Any) -> bool:
    """Whether the code of a function, a method or a callable object names one of `WHOLE`."""
    function = value if isinstance(value, (FunctionType, MethodType)) else vars(type(value)).get("__call__")
    code = getattr(function, "__code__", None)
    return code is not None and not WHOLE.isdisjoint(_names(code))


def _names(code: CodeType) -> Iterator[str]:
    """The attributes and text that code names, also in functions inside it; of dotted text, the first part."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant.partition(".")[0]
        elif isinstance(constant, CodeType):
            yield from _names(constant)
