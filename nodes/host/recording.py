"""Recording what a MODEL's layers are fed while ComfyUI samples with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...quant import QuantError
from ...quant.calibration.calibration import Calibration
from ...quant.calibration.recorder import Recorder
from ...quant.calibration.statistics import fingerprint
from ...quant.files.quantized import quantized_layers
from ...quant.files.sources import StateDictSource
from ...quant.files.tensors import WEIGHT
from .models import RECORDING, diffusion_tensors, origin_of


class SamplingRecorder:
    """Collects the inputs of a diffusion model's linear layers in every run that `wrap` sees.

    fingerprints: of the original weights, whatever is patched while they run; only layers that are in it are recorded.
    Layers are named as `diffusion_tensors` names them.
    """

    def __init__(self, rows: int, budget: int, fingerprints: dict[str, str]) -> None:
        self._recorder, self._fingerprints = Recorder(rows, budget), fingerprints

    def wrap(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of the host's SAMPLER_SAMPLE: object patches are in place there, and every step is inside."""
        with self._recorder.watch(guider.model_patcher.model.diffusion_model, layers=self._fingerprints):
            return executor(guider, *args, **kwargs)

    def calibration(self) -> Calibration:
        """What was recorded up to now. Raises QuantError if that is nothing."""
        try:
            return self._recorder.calibration(self._fingerprints)
        except QuantError:
            raise QuantError(
                "Nothing was recorded: sample with the MODEL that Record Calibration gives; if ComfyUI took the "
                "sampling from its cache, change the seed and queue again."
            ) from None


def record(patcher: Any, rows: int, budget: int) -> tuple[Any, SamplingRecorder]:
    """A clone of a MODEL's patcher that records each run, and its recorder. Raises QuantError for a quantized model."""
    recorder = SamplingRecorder(rows, budget, float_fingerprints(diffusion_tensors(origin_of(patcher))))
    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, RECORDING, recorder.wrap)
    return clone, recorder


def float_fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of every two-dimensional weight by its layer's name. Raises QuantError for a quantized model."""
    quantized = quantized_layers(StateDictSource(tensors))
    if quantized:
        raise QuantError(
            f"This model is quantized, layer '{next(iter(quantized))}' first; calibrate the float model that it was "
            "made from."
        )
    weights = {key.removesuffix(WEIGHT): t for key, t in tensors.items() if key.endswith(WEIGHT) and t.dim() == 2}
    return {layer: fingerprint(weight) for layer, weight in weights.items()}
