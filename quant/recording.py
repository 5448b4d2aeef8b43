"""Recording what a torch model's linear layers are fed, whoever runs the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .calibration import BUDGET, ROWS, Calibration, Collector
from .errors import QuantError
from .statistics import fingerprint


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

    @contextmanager
    def watch(self, model: torch.nn.Module, prefix: str = "", layers: Collection[str] | None = None) -> Iterator[None]:
        """Record every `torch.nn.Linear` of ``model`` that runs inside, or those whose names are in ``layers``.

        A layer's name is ``prefix`` and the module's name, as the checkpoint's keys have it without ``.weight``. The
        hooks are gone after it, also after an error; what the model computes does not change.
        """
        with ExitStack() as stack:
            stack.callback(self._collector.release)
            for name, module in model.named_modules(prefix=prefix.removesuffix(".")):
                if isinstance(module, torch.nn.Linear) and (layers is None or name in layers):
                    stack.callback(module.register_forward_pre_hook(self._hook(name)).remove)
            # Code that was compiled before would not call the hooks.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def calibration(self, fingerprints: dict[str, str] | None = None) -> Calibration:
        """What was recorded up to now. ``fingerprints`` of the weights, where the modules' own are not the originals.

        Raises QuantError if nothing was recorded.
        """
        found = self._collector.finish()
        if not found:
            raise QuantError("Nothing was recorded: no linear layer of the watched model has run.")
        known = self._fingerprints if fingerprints is None else fingerprints
        return Calibration(found.samples, found.shared, {layer: known[layer] for layer in found})

    def _hook(self, layer: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def record(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # What is kept is worked on outside the inference mode that the model may run in.
            with torch.inference_mode(False), torch.no_grad():
                if layer not in self._fingerprints:
                    self._fingerprints[layer] = fingerprint(module.get_parameter("weight"))
                self._collector.add(layer, inputs[0])

        return record
