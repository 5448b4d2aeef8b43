"""Sampling inside a node, as KSampler does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
from comfy_api.latest import io

OnStep = Callable[[int, Any, Any, int], None]
"""ComfyUI's callback: takes the step, from 0, the denoised prediction, the latents before the step, and the number of
steps. Predictions and latents of several streams, such as video and sound, are nested tensors.
"""


def condition_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="What to sample, as for KSampler."),
        io.Conditioning.Input("negative", tooltip="What to avoid, as for KSampler."),
        io.Latent.Input("latent_image", tooltip="Size of the latents to sample. A larger batch widens the sample."),
    ]


def step_inputs() -> list[io.Input]:
    samplers, schedulers = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps of each run."),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
        io.Combo.Input("sampler_name", options=samplers, tooltip="The sampler that you will use later."),
        io.Combo.Input("scheduler", options=schedulers, tooltip="The scheduler that you will use later."),
    ]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """KSampler's inputs without the model and the seed: the values of `condition_inputs` and `step_inputs` by name."""

    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str

    def initial_latents(self, model: Any) -> Any:
        """The latents ``[B, C, ...]`` that sampling starts from, in the shape that the model takes."""
        names = ("downscale_ratio_spacial", "downscale_ratio_temporal")
        ratios = {name: self.latent_image[name] for name in names if name in self.latent_image}
        return comfy.sample.fix_empty_latent_channels(model, self.latent_image["samples"], **ratios)

    def sample(self, model: Any, seed: int, on_step: OnStep) -> Any:
        """The finished latents."""
        latents = self.initial_latents(model)
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latents, seed, self.latent_image.get("batch_index")),
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            latents,
            noise_mask=self.latent_image.get("noise_mask"),
            callback=on_step,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )


class SamplingBar:
    """A node's progress bar over all steps of several samplings, with ComfyUI's previews."""

    def __init__(self, samplings: int, steps: int, node_id: str | None) -> None:
        self._steps, self._total = steps, samplings * steps
        self._bar = comfy.utils.ProgressBar(self._total, node_id=node_id)

    def follow(self, model: Any, index: int) -> OnStep:
        """The callback of the sampling with this index."""
        import latent_preview

        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

        def show(step: int, predicted: Any, _: Any, __: int) -> None:
            # Of several streams, ComfyUI's previewers take the first.
            shown = predicted.unbind()[0] if predicted.is_nested else predicted
            preview = previewer.decode_latent_to_preview_image("JPEG", shown) if previewer else None
            # Some samplers choose their own number of steps.
            done = index * self._steps + min(step + 1, self._steps)
            self._bar.update_absolute(done, self._total, preview)

        return show
