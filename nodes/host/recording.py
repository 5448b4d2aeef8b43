"""Recording the inputs of a MODEL's layers while ComfyUI samples with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from .merging import fingerprint_patched
from .origin import PREFIX, read_diffusion_tensors, read_origin, read_source_dtypes
from .plain_forward import plain_forward

RECORDING = "calibrated_rounding_recording"
"""Key of the wrapper that records; a rebuilt model does not keep it."""


class SamplingRecorder:
    """Collects the inputs of a diffusion model's linear layers in every sampling that `wrap` sees.

    Args:
        rows: Most rows to keep of each layer.
        budget: Memory budget of all rows in bytes.
        fingerprints: Of the original weights, whatever is patched while they run. Layers are named as
            `read_diffusion_tensors` names them; others than these are not recorded.
    """

    def __init__(self, rows: int, budget: int, fingerprints: dict[str, str]) -> None:
        self._recorder, self._fingerprints = Recorder(rows, budget), fingerprints
        self._patched: dict[Any, dict[str, str]] = {}
        """Identity of a MODEL's patches -> fingerprints of the layers that have some."""

    def wrap(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of ComfyUI's SAMPLER_SAMPLE: object patches are in place there, and every step is inside."""
        patcher = guider.model_patcher
        model = patcher.model.diffusion_model
        if patcher.patches_uuid not in self._patched:
            self._patched[patcher.patches_uuid] = _fingerprint_patched(patcher)
        with plain_forward(model), self._recorder.watch(model, layers=self._fingerprints):
            return executor(guider, *args, **kwargs)

    def calibration(self) -> Calibration:
        """The calibration of all that was recorded up to now.

        Raises:
            QuantError: if nothing was recorded.
        """
        try:
            calibration = self._recorder.calibration(self._fingerprints)
        except QuantError:
            raise QuantError(
                "Nothing was recorded: sample with the MODEL that Record Calibration gives; if ComfyUI took the "
                "sampling from its cache, change the seed and queue again."
            ) from None
        # A layer that ran with several patches, or also without, has no single weight that ran.
        common = set.intersection(*(set(prints.items()) for prints in self._patched.values()))
        return replace(calibration, patched_fingerprints={k: v for k, v in sorted(common) if k in calibration})


def attach_recorder(patcher: Any, rows: int, budget: int) -> tuple[Any, SamplingRecorder]:
    """Make a clone of a MODEL that records every sampling.

    Args:
        patcher: The MODEL.
        rows: Most rows to keep of each layer.
        budget: Memory budget of all rows in bytes.

    Returns:
        The clone, and its recorder.

    Raises:
        QuantError: if the model is quantized.
    """
    recorder = SamplingRecorder(rows, budget, fingerprint_layers(read_diffusion_tensors(read_origin(patcher))))
    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, RECORDING, recorder.wrap)
    return clone, recorder


def _fingerprint_patched(patcher: Any) -> dict[str, str]:
    tensors = read_diffusion_tensors(read_origin(patcher))
    return fingerprint_patched(patcher, tensors, PREFIX, read_source_dtypes(patcher))


def fingerprint_layers(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of every two-dimensional weight by its layer's name.

    Raises:
        QuantError: if the model is quantized.
    """
    quantized = quantized_layers(StateDictSource(tensors))
    if quantized:
        raise QuantError(
            f"This model is quantized, layer '{next(iter(quantized))}' first; calibrate the float model that it was "
            "made from."
        )
    weights = {key.removesuffix(WEIGHT): t for key, t in tensors.items() if key.endswith(WEIGHT) and t.dim() == 2}
    return {layer: fingerprint(weight) for layer, weight in weights.items()}
