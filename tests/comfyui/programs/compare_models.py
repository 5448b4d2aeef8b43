"""Program of test_compare.py."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.nested_tensor
import comfy.utils
import nodes
import torch
from calibrated_rounding.nodes.host.sampling import Sampling
from calibrated_rounding.tools.comfyui.inside.calls import count_calls
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension, quantize_model
from calibrated_rounding.tools.comfyui.inside.sampling import conditions
from torch import Tensor

extension = load_extension()

DIGITS = 2


class Comparison:
    """The same sampling by Compare Models and by ComfyUI's own sampler."""

    def __init__(self, table: Tensor, steps: int, seeds: list[int]) -> None:
        self.conditions = conditions(table, DIGITS)
        self.settings = {"steps": steps, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
        self.seeds = seeds
        self.empty = {"samples": torch.zeros(DIGITS, 16, 1, 8, 8)}

    def compare(self, reference: Any, candidate: Any, **inputs: Any) -> Any:
        """Execute Compare Models; returns its NodeOutput."""
        defaults = {"seeds": ", ".join(map(str, self.seeds)), "latent_image": self.empty}
        return call(
            extension.CompareModels, unique_id="9", reference=reference, candidate=candidate,
            **{**defaults, **self.conditions, **self.settings, **inputs},
        )  # fmt: skip

    def sample(self, model: Any, seed: int, latent_image: dict[str, Any] | None = None) -> Tensor:
        latent = self.empty if latent_image is None else latent_image
        asked = (*self.settings.values(), *self.conditions.values(), latent)
        samples: Tensor = nodes.common_ksampler(model, seed, *asked)[0]["samples"]
        return samples

    def sample_all(self, model: Any) -> Tensor:
        return torch.stack([self.sample(model, seed) for seed in self.seeds])


def compare_models(source: str, table: Tensor, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Compare a model with its INT8, with itself, and with what cannot be compared."""
    comparison = Comparison(table, steps, seeds)
    model, _ = load_unet(source)
    quantized = quantize_model(model, "int8_row").args[0]
    node, same = comparison.compare(model, quantized), comparison.compare(model, model.clone())
    reference, candidate = comparison.sample_all(model), comparison.sample_all(quantized)
    return {
        "report": node.args[1],
        "psnr": node.args[2],
        "shown": node.ui,
        "reference": reference,
        "candidate": candidate,
        "same_report": same.args[1],
        "same_psnr": same.args[2],
        "several": compare_several(comparison, model, quantized),
        "masked": sample_masked(comparison, model, reference[0]),
        "errors": refuse_comparisons(comparison, model, quantized),
        **draw_picture(comparison, model, quantized, reference),
        **watch_progress(comparison, model, quantized),
        "interrupt": interrupt_comparison(comparison, model, quantized),
        "unchanged": torch.equal(comparison.sample_all(model), reference)
        and torch.equal(comparison.sample_all(quantized), candidate),
    }


def compare_several(comparison: Comparison, model: Any, quantized: Any) -> dict[str, Any]:
    """Two candidates after a comparison with the same reference; counts what is sampled."""
    comparison.compare(model, quantized)
    with count_calls(Sampling, "sample") as calls:
        node = comparison.compare(model, quantized, candidate_b=model)
    return {"report": node.args[1], "psnr": node.args[2], "samplings": len(calls)}


def sample_masked(comparison: Comparison, model: Any, latents: Tensor) -> dict[str, Any]:
    """Sample with a noise mask and batch indices, as Compare Models and as KSampler."""
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6] = 1
    latent_image = {"samples": latents.clone(), "noise_mask": mask, "batch_index": [4, 9]}
    steps = list[Tensor]()
    sampling = Sampling(**comparison.conditions, latent_image=latent_image, **comparison.settings)
    samples = sampling.sample(model, 3, lambda step, x0, *_: steps.append(x0))
    return {"equal": torch.equal(samples, comparison.sample(model, 3, latent_image)), "steps": len(steps)}


def refuse_comparisons(comparison: Comparison, model: Any, quantized: Any) -> dict[str, str | None]:
    other = model.clone()
    other.add_object_patch("latent_format", comfy.latent_formats.SD15())
    nested = comfy.nested_tensor.NestedTensor([comparison.empty["samples"], torch.zeros(2, 8, 4)])
    return {
        "shapes": error_message(lambda: comparison.compare(model, other)),
        "parts": error_message(lambda: comparison.compare(model, quantized, latent_image={"samples": nested})),
        "seeds": error_message(lambda: comparison.compare(model, quantized, seeds="one")),
    }


def draw_picture(comparison: Comparison, model: Any, quantized: Any, reference: Tensor) -> dict[str, Tensor]:
    (vae,) = nodes.VAELoader().load_vae("digits_vae.safetensors")
    decoded = [nodes.VAEDecode().decode(vae, {"samples": latents})[0] for latents in reference]
    return {"picture": comparison.compare(model, quantized, vae=vae).args[0], "decoded": torch.cat(decoded)}


def watch_progress(comparison: Comparison, model: Any, quantized: Any) -> dict[str, Any]:
    """Compare without a VAE and collect what the progress bar shows."""
    progress = list[list[Any]]()
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id: progress.append([value, total, node_id])
    )
    message = comparison.compare(model, quantized).args[0].message
    comfy.utils.set_progress_bar_global_hook(None)
    return {"blocked_picture": message, "progress": progress}


def interrupt_comparison(comparison: Comparison, model: Any, quantized: Any) -> str:
    """Interrupt a comparison while the quantized model samples; returns the exception's type."""
    hook = quantized.model.diffusion_model.register_forward_pre_hook(
        lambda *_: management.interrupt_current_processing()
    )
    try:
        comparison.compare(model, quantized)
        return ""
    except BaseException as error:
        return type(error).__name__
    finally:
        hook.remove()
