"""Program of test_offload.py.

Without a GPU ComfyUI loads every model whole. Here it believes that some bytes of weights are free; what follows is its
own: weights that stay outside are cast for each use, and LoRAs are then applied to the dequantized weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import folder_paths
import torch
from calibrated_rounding.tools.comfyui.inside.models import apply_lora, load_unet, random_lora, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension, quantize_model
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from torch import Tensor

extension = load_extension()


class States:
    """Samples a model after its weights were loaded or unloaded in part; each public method is one way."""

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def whole(self, model: Any) -> Tensor:
        management.unload_all_models()
        return self._sample(model)

    def part_loaded(self, model: Any) -> Tensor:
        management.unload_all_models()
        with free_memory(0.6 * model.model_size()):
            return self._sample(model)

    def nothing_loaded(self, model: Any) -> Tensor:
        management.unload_all_models()
        with free_memory(0.1):
            return self._sample(model)

    def part_unloaded(self, model: Any) -> Tensor:
        self.whole(model)
        with free_memory(0.6 * model.model_size()):
            return self._sample(model)

    def more_loaded(self, model: Any) -> Tensor:
        self.part_loaded(model)
        return self._sample(model)

    def detached(self, model: Any) -> Tensor:
        self.part_loaded(model)
        model.detach()
        return self._sample(model)

    def _sample(self, model: Any) -> Tensor:
        return sample_briefly(model, self._table)


@contextmanager
def free_memory(size: float) -> Iterator[None]:
    """Make ComfyUI load models as if ``size`` bytes were free for their weights."""
    load = management.LoadedModel.model_load

    def load_within(loaded: Any, _: float, **options: Any) -> Any:
        # As load_models_gpu computes it, but for the free memory.
        return load(loaded, size - loaded.model_loaded_memory() or 0.1, **options)

    management.LoadedModel.model_load = load_within
    try:
        yield
    finally:
        management.LoadedModel.model_load = load


def sample_in_states(source: str, table: Tensor, output: str, fmt: str, states: list[str]) -> dict[str, Any]:
    """Sample a quantized model and its saved file in each state, with and without a LoRA."""
    folder_paths.set_output_directory(output)
    ways = States(table)
    model, _ = load_unet(source)
    lora = random_lora(model, r"\.blocks\..*\.weight$")
    quantized = quantize_model(model, fmt).args[0]
    path = call(extension.SaveQuantizedModel, model=quantized, filename_prefix=f"diffusion_models/{fmt}").args[0]
    saved, _ = load_unet(path)
    plain, patched = ways.whole(quantized), ways.whole(apply_lora(quantized, lora))

    def run(name: str) -> dict[str, Any]:
        sample = getattr(ways, name)
        latents = sample(quantized)
        share = quantized.loaded_size() / quantized.model_size()
        saved_latents = sample(saved)
        with_lora = apply_lora(quantized, lora)
        lora_latents = sample(with_lora)
        return {
            "loaded_share": share,
            "patches_at_use": with_lora.lowvram_patch_counter(),
            "equals_whole": torch.equal(latents, plain),
            "equals_saved": torch.equal(latents, saved_latents),
            "lora_equals_saved": torch.equal(lora_latents, sample(apply_lora(saved, lora))),
            "lora_error": relative_error(lora_latents, patched),
        }

    results = {name: run(name) for name in states}
    without_lora_again = torch.equal(sample_briefly(quantized, table), plain)
    ways.part_loaded(apply_lora(model, lora))
    return {
        "states": results,
        "lora_effect": relative_error(plain, patched),
        "without_lora_again": without_lora_again,
        "source_in_part_equal": torch.equal(ways.whole(quantize_model(model, fmt).args[0]), plain),
    }
