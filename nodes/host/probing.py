"""Measuring how sensitive the latents that a MODEL samples are to each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...quant.calibration.sensitivity import Perturbation, measure_sensitivities
from .plain_forward import plain_forward

PROBING = "calibrated_rounding_probing"
"""Key of the wrapper that perturbs a layer."""

Sample = Callable[[Any, int], Tensor]
"""Samples with a MODEL from the same seed each time: takes the MODEL and the number of earlier calls, gives latents."""


class SamplingProbe:
    """Perturbs one layer of a diffusion model at a time in the samplings that `wrap` sees."""

    def __init__(self, patcher: Any) -> None:
        self._clone, self._calls = patcher.clone(), 0
        self._perturbation: Perturbation | None = None
        self._clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, PROBING, self.wrap)

    def wrap(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of ComfyUI's SAMPLER_SAMPLE: object patches are in place there, and every step is inside."""
        model = guider.model_patcher.model.diffusion_model
        # Also where nothing is perturbed, as the reference must be computed in the same way.
        with plain_forward(model):
            if self._perturbation is None:
                return executor(guider, *args, **kwargs)
            with self._perturbation.apply(model):
                return executor(guider, *args, **kwargs)

    def measure(self, layers: Sequence[str], sample: Sample) -> dict[str, float]:
        """Measure sensitivities with one call of ``sample`` for each layer, and one more.

        Args:
            layers: Named as `read_diffusion_tensors` names them.
            sample: Samples with a MODEL.

        Returns:
            Layer -> sensitivity, as `measure_sensitivities`.
        """

        def run(perturbation: Perturbation | None) -> Tensor:
            self._perturbation, index = perturbation, self._calls
            self._calls += 1
            return flatten_latents(sample(self._clone, index))

        return measure_sensitivities(layers, run)


def flatten_latents(latents: Any) -> Tensor:
    """All values of latents in one dimension, also of nested latents (several streams, such as video and sound)."""
    streams = latents.unbind() if latents.is_nested else [latents]
    return torch.cat([stream.flatten() for stream in streams])
