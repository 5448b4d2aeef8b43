"""Recording what a torch model's linear layers are fed, whoever runs the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import QuantError
from ..text import shortened
from .file import Calibration
from .sample import BUDGET, ROWS, Collector
from .statistics import fingerprint

COMPILED = "_orig_mod"
"""The part of a module's name that `torch.compile` adds, and a checkpoint lacks."""

Hook = Callable[[torch.nn.Module, tuple[Tensor, ...], dict[str, Any]], None]


class Recorder:
    """Collects the inputs of linear layers while a model runs inside `watch`.

        recorder = Recorder()
        with recorder.watch(model):
            model(...)
        recorder.calibration().save("calibration.safetensors")

    rows and budget: as `Collector` takes them.
    """

    def __init__(self, rows: int = ROWS, budget: int = BUDGET) -> None:
        self._collector = Collector(rows=rows, budget=budget)
        self._fingerprints: dict[str, str] = {}
        self._changed: list[str] = []

    @contextmanager
    def watch(self, model: torch.nn.Module, prefix: str = "", layers: Collection[str] | None = None) -> Iterator[None]:
        """Record every `torch.nn.Linear` of ``model`` that runs inside, or those whose names are in ``layers``.

        A layer's name is ``prefix`` and the module's name, as the checkpoint's keys have it without ``.weight``; two
        models whose layers share names need prefixes to tell them apart. The hooks are gone after it, also after an
        error; what the model computes does not change. A compiled model runs uncompiled inside.
        """
        with ExitStack() as stack:
            stack.callback(self._collector.release)
            for path, module in model.named_modules(prefix=prefix.removesuffix(".")):
                name = layer_name(path)
                if isinstance(module, torch.nn.Linear) and (layers is None or name in layers):
                    stack.callback(module.register_forward_pre_hook(self._hook(name), with_kwargs=True).remove)
            # Code that was compiled before would not call the hooks.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def calibration(self, fingerprints: Mapping[str, str] | None = None) -> Calibration:
        """What was recorded up to now. ``fingerprints`` of the weights, where the modules' own are not the originals.

        Raises QuantError if nothing was recorded, or layers of two models under one name.
        """
        found = self._collector.finish()
        if not found:
            raise QuantError("Nothing was recorded: no linear layer of the watched model has run.")
        if fingerprints is None and self._changed:
            raise QuantError(
                f"{len(self._changed)} layers were recorded with more than one weight ({shortened(self._changed)}); "
                "give watch a prefix of its own for each model."
            )
        known = self._fingerprints if fingerprints is None else fingerprints
        return Calibration(found.samples, found.shared, {layer: known[layer] for layer in found})

    def _hook(self, layer: str) -> Hook:
        seen = False

        def record(module: torch.nn.Module, args: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            nonlocal seen
            # What is kept is worked on outside the inference mode that the model may run in.
            with torch.inference_mode(False), torch.no_grad():
                if not seen:
                    self._identify(layer, module.get_parameter("weight"))
                self._collector.add(layer, args[0] if args else named["input"])
            seen = True

        return record

    def _identify(self, layer: str, weight: Tensor) -> None:
        found = fingerprint(weight)
        if self._fingerprints.setdefault(layer, found) != found and layer not in self._changed:
            self._changed.append(layer)


def layer_name(path: str) -> str:
    """A module's name as a checkpoint has it, also where it or a module around it is compiled."""
    return ".".join(part for part in path.split(".") if part != COMPILED)
