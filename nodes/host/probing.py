"""Measuring how sensitive what a MODEL samples is to each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...quant.calibration.sensitivity import Perturbation, measure_sensitivities

PROBING = "calibrated_rounding_probing"

Sample = Callable[[Any, int], Tensor]
"""Samples with a MODEL's patcher, from the same seed each time; counted from 0. Gives the finished latents."""


class SamplingProbe:
    """Disturbs one layer of a diffusion model at a time in the runs that `wrap` sees."""

    def __init__(self, patcher: Any) -> None:
        self._clone, self._runs = patcher.clone(), 0
        self._perturbation: Perturbation | None = None
        self._clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, PROBING, self.wrap)

    def wrap(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """A wrapper of the host's SAMPLER_SAMPLE: object patches are in place there, and every step is inside."""
        if self._perturbation is None:
            return executor(guider, *args, **kwargs)
        with self._perturbation.apply(guider.model_patcher.model.diffusion_model):
            return executor(guider, *args, **kwargs)

    def sensitivities(self, layers: Sequence[str], sample: Sample) -> dict[str, float]:
        """Of ``layers``, named as `diffusion_tensors` names them, from one call of ``sample`` for each and one more."""

        def run(perturbation: Perturbation | None) -> Tensor:
            self._perturbation, index = perturbation, self._runs
            self._runs += 1
            return flat(sample(self._clone, index))

        return measure_sensitivities(layers, run)


def flat(latents: Any) -> Tensor:
    """All values of latents, which may be the nested ones of several streams."""
    parts = latents.unbind() if latents.is_nested else [latents]
    return torch.cat([part.flatten() for part in parts])
