"""Patches that are bound to the modules of their model: bound to a rebuilt model's modules, or refused.

A rebuilt model has modules of its own. A patch that calls a module of the source would run the float weights, and one
that changes such a module would do nothing. Modules, their methods, partial functions of both and ComfyUI's bypass
LoRAs are bound again. Other patches that lead to a module of the source, such as a function with one in its closure,
are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch

from ...quant import QuantError
from .compiled import COMPILE_KEY
from .optional import import_optional
from .origin import Origin, named_original_modules, read_origin
from .references import leads_to


class _Modules:
    """The modules of a source, and the modules of the same names in a rebuilt model, its twins."""

    def __init__(self, origin: Origin, rebuilt: torch.nn.Module | None = None) -> None:
        self.root, self._rebuilt = origin.model, rebuilt
        # Modules without weights, such as the sampling's schedule, are as good in the source as in the rebuilt model.
        modules = ((name, module) for name, module in named_original_modules(origin) if name)
        self._names = {id(module): name for name, module in modules if next(module.parameters(), None) is not None}

    def __contains__(self, value: object) -> bool:
        """Whether a value is a module with weights, or a method of one or of the whole model."""
        if isinstance(value, MethodType):
            return value.__self__ is self.root or id(value.__self__) in self._names
        return id(value) in self._names

    def twin(self, module: Any) -> Any:
        assert self._rebuilt is not None
        return self._rebuilt if module is self.root else self._rebuilt.get_submodule(self._names[id(module)])


def refuse_bound(patcher: Any) -> None:
    """Refuse a MODEL or CLIP with a patch that `rebind` cannot bind to a rebuilt model.

    Raises:
        QuantError: names the patch.
    """
    modules = _Modules(read_origin(patcher))
    for place, value in _list_places(patcher):
        if _is_stuck(value, modules):
            raise QuantError(
                f"The {place} of this model is bound to its float weights and cannot be moved to the quantized model; "
                "put the node that adds it after the one that quantizes."
            )


def rebind(clone: Any, origin: Origin) -> None:
    """Bind the patches of a clone, whose model was rebuilt, to the clone's modules.

    Args:
        clone: The clone's patcher, with the patches of the source.
        origin: The source.
    """
    modules = _Modules(origin, clone.model)
    clone.object_patches = _move(clone.object_patches, modules)
    clone.weight_wrapper_patches = _move(clone.weight_wrapper_patches, modules)
    clone.wrappers, clone.callbacks = _move(clone.wrappers, modules), _move(clone.callbacks, modules)
    clone.model_options = _move(clone.model_options, modules)
    for key, injections in clone.injections.items():
        clone.injections[key] = [new for old in injections for new in _move_injection(old, clone.model, modules)]


def _list_places(patcher: Any) -> Iterator[tuple[str, Any]]:
    """Every patch that may run code, with words for it."""
    for name, patch in patcher.object_patches.items():
        yield f"object patch '{name}'", patch
    for name, wrapper in patcher.weight_wrapper_patches.items():
        yield f"weight wrapper '{name}'", wrapper
    for kind, tables in (("wrapper", patcher.wrappers), ("callback", patcher.callbacks)):
        for table in tables.values():
            yield from ((f"{kind} '{key}'", functions) for key, functions in table.items() if key != COMPILE_KEY)
    for key, injections in patcher.injections.items():
        others = [injection for injection in injections if _find_bypass_manager(injection) is None]
        yield f"injection '{key}'", [(injection.inject, injection.eject) for injection in others]
    options = dict(patcher.model_options)
    options |= options.pop("transformer_options", {})
    yield from ((f"option '{name}'", option) for name, option in options.items())
    yield "hooks", patcher.forced_hooks


def _is_stuck(value: Any, modules: _Modules) -> bool:
    """Whether a value leads to a module of the source in a way that `_move` cannot follow."""
    if type(value) in (dict, list, tuple, partial):
        return any(_is_stuck(part, modules) for part in _list_parts(value))
    if value in modules:
        return isinstance(value, MethodType) and leads_to(value.__func__, modules, modules.root)
    return leads_to(value, modules, modules.root)


def _list_parts(value: Any) -> list[Any]:
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    return list(value.values() if isinstance(value, dict) else value)


def _move(value: Any, modules: _Modules) -> Any:
    """Replace the modules of the source in a value, and their methods, by the twins and their methods."""
    if type(value) is dict:
        return {key: _move(part, modules) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_move(part, modules) for part in value)
    if type(value) is partial:
        keywords = {name: _move(part, modules) for name, part in value.keywords.items()}
        return partial(_move(value.func, modules), *(_move(part, modules) for part in value.args), **keywords)
    if value not in modules:
        return value
    if isinstance(value, MethodType):
        return MethodType(value.__func__, modules.twin(value.__self__))
    return modules.twin(value)


def _move_injection(injection: Any, model: torch.nn.Module, modules: _Modules) -> list[Any]:
    manager = _find_bypass_manager(injection)
    if manager is None:
        return [type(injection)(inject=_move(injection.inject, modules), eject=_move(injection.eject, modules))]
    fresh = type(manager)()
    for key, (adapter, strength) in manager.adapters.items():
        fresh.add_adapter(key, adapter, strength)
    return fresh.create_injections(model)


def _find_bypass_manager(injection: Any) -> Any | None:
    """ComfyUI's manager of bypass LoRAs behind an injection, which holds the LoRAs; None for other injections."""
    loss = "a bypass LoRA must come after quantizing"
    class_ = import_optional("comfy.weight_adapter", "BypassInjectionManager", loss)
    if class_ is None or not inspect.isfunction(injection.inject):
        return None
    manager = inspect.getclosurevars(injection.inject).nonlocals.get("self")
    return manager if isinstance(manager, class_) else None
