"""Recording what a MODEL's layers are fed while ComfyUI samples with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..quant import QuantError
from ..quant.calibration import Calibration, Collector
from ..quant.plan import WEIGHT
from ..quant.sources import StateDictSource, quantized_layers
from ..quant.statistics import fingerprint
from .host import RECORDING, diffusion_tensors, origin_of


class Recorder:
    """Collects the inputs of a diffusion model's linear layers in every run that `wrap` sees.

    fingerprints: of the original weights; only layers that are in it are recorded. Layers are named as
    `diffusion_tensors` names them.
    """

    def __init__(self, rows: int, budget: int, fingerprints: Mapping[str, str]) -> None:
        self._collector = Collector(rows=rows, budget=budget)
        self._fingerprints = fingerprints

    def wrap(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of the host's SAMPLER_SAMPLE: object patches are in place there, and every step is inside."""
        with self._hooked(guider.model_patcher.model.diffusion_model):
            return executor(guider, *args, **kwargs)

    def calibration(self) -> Calibration:
        """What was recorded up to now. Raises QuantError if that is nothing."""
        found = self._collector.finish()
        if not found:
            raise QuantError(
                "Nothing was recorded: sample with the MODEL that Record Calibration gives; if ComfyUI took the "
                "sampling from its cache, change the seed and queue again."
            )
        return Calibration(found.samples, found.shared, {layer: self._fingerprints[layer] for layer in found})

    @contextmanager
    def _hooked(self, model: torch.nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._collector.release)
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and name in self._fingerprints:
                    stack.callback(module.register_forward_pre_hook(self._hook(name)).remove)
            # Code that was compiled before would not call the hooks.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def _hook(self, layer: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def record(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # What is kept is worked on outside the inference mode that nodes run in.
            with torch.inference_mode(False), torch.no_grad():
                self._collector.add(layer, inputs[0])

        return record


def record(patcher: Any, rows: int, budget: int) -> tuple[Any, Recorder]:
    """A clone of a MODEL's patcher that records each run, and its recorder. Raises QuantError for a quantized model."""
    tensors = diffusion_tensors(origin_of(patcher))
    quantized = quantized_layers(StateDictSource(tensors))
    if quantized:
        raise QuantError(
            f"This model is quantized, layer '{next(iter(quantized))}' first; calibrate the float model that it was "
            "made from."
        )
    weights = {key.removesuffix(WEIGHT): t for key, t in tensors.items() if key.endswith(WEIGHT) and t.dim() == 2}
    recorder = Recorder(rows, budget, {layer: fingerprint(weight) for layer, weight in weights.items()})
    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, RECORDING, recorder.wrap)
    return clone, recorder
