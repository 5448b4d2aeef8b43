"""Programs of test_nodes_model.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import folder_paths
import torch
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import (
    apply_lora,
    describe_quantized_layers,
    load_unet,
    random_lora,
    relative_error,
)
from calibrated_rounding.tools.comfyui.inside.pack import (
    NEAREST,
    call,
    layer_rows,
    load_extension,
    quantize_model,
    svd_rounding,
)
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, TORCH_COMPILE_KWARGS
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_model_merging import ModelSave
from torch import Tensor

extension = load_extension()


def quantize_in_formats(source: str, table: Tensor, output: str, formats: list[str]) -> dict[str, Any]:
    """Quantize a model in each format; sample it, save it, load it again and copy it."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    latents = sample_briefly(model, table)
    results = {fmt: quantize_to(model, fmt, table) for fmt in formats}
    return {
        "formats": results,
        "source_size": model.model_size(),
        "source_unchanged": torch.equal(latents, sample_briefly(model, table)),
    }


def quantize_to(model: Any, fmt: str, table: Tensor) -> dict[str, Any]:
    node = quantize_model(model, fmt)
    quantized = node.args[0]
    latents = sample_briefly(quantized, table)
    path = save(quantized, fmt)
    reloaded, warnings = load_unet(path)
    deep, multigpu = quantized.clone(force_deepcopy=True), quantized.deepclone_multigpu()
    ModelSave().save(quantized, f"diffusion_models/stock_{fmt}")

    def is_equal(other: Any) -> bool:
        return torch.equal(latents, sample_briefly(other, table))

    return {
        "path": path,
        "warnings": warnings,
        "size": quantized.model_size(),
        "layers": describe_quantized_layers(quantized.model.diffusion_model),
        "reloaded_equal": is_equal(reloaded),
        "deep_copy": deep.model is not quantized.model and is_equal(deep),
        "multigpu_copy": multigpu.model is not quantized.model and is_equal(multigpu),
        "equal_after_copies": is_equal(quantized),
        "report": node.args[1],
        "shown": node.ui,
    }


def save(model: Any, name: str) -> str:
    """Save a quantized model with the pack's node; returns the path."""
    return call(extension.SaveQuantizedModel, model=model, filename_prefix=f"diffusion_models/{name}").args[0]


def patch_models(source: str, table: Tensor, output: str, fmt: str) -> dict[str, Any]:
    """Quantize a model with a LoRA and with a sampling patch."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    lora = random_lora(model, r"(self_attn\.q|ffn\.2)\.weight$")
    sample = partial(sample_briefly, table=table)
    float_latents, float_lora_latents = sample(model), sample(apply_lora(model, lora))
    plain = quantize_model(model, fmt).args[0]
    plain_latents = sample(plain)
    sample(apply_lora(model, lora))  # leaves the LoRA in the weights of the loaded float model
    weights_without_lora = torch.equal(sample(quantize_model(model, fmt).args[0]), plain_latents)
    before, after = quantize_model(apply_lora(model, lora), fmt).args[0], apply_lora(plain, lora)
    lora_latents = sample(before)
    path = save(before, "lora")
    result = {
        "weights_without_lora": weights_without_lora,
        "plain_error": relative_error(plain_latents, float_latents),
        "lora_error": relative_error(lora_latents, float_lora_latents),
        "lora_effect": relative_error(float_latents, float_lora_latents),
        "before_equals_after": torch.equal(lora_latents, sample(after)),
        "path": path,
        "saved_equal": torch.equal(sample(load_unet(path)[0]), sample(before)),
        "without_lora_again": torch.equal(sample(plain), plain_latents),
    }
    (shifted,) = ModelSamplingSD3().patch(model, 5.0)
    (shifted_after,) = ModelSamplingSD3().patch(plain, 5.0)
    latents = sample(quantize_model(shifted, fmt).args[0])
    return {
        **result,
        "sampling_patch_equal": torch.equal(latents, sample(shifted_after)),
        "sampling_patch_changes": not torch.equal(latents, plain_latents),
        "source_unchanged": torch.equal(float_latents, sample(model)),
    }


def quantize_compiled(source: str, table: Tensor, output: str, fmt: str) -> dict[str, Any]:
    """Quantize models that were compiled in ways that the pack can follow, and in ways that it cannot."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    graphs = list[Any]()

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    plain = sample_briefly(quantize_model(model, fmt).args[0], table)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend=backend, keys=["diffusion_model.blocks.1"])  # the whole takes long
    equal = torch.equal(sample_briefly(quantize_model(compiled, fmt).args[0], table), plain)
    opaque = compile_opaquely(model, compiled, backend)
    errors = {
        name: error_message(partial(quantize_model, patcher, fmt), with_type=True) for name, patcher in opaque.items()
    }
    return {"equal": equal, "graphs": len(graphs), "errors": errors}


def compile_opaquely(model: Any, compiled: Any, backend: Callable[..., Any]) -> dict[str, Any]:
    """Compile a model in ways that hide its modules or the compiler's options."""
    replaced, nameless, without_options = model.clone(), compiled.clone(), compiled.clone()
    module = model.get_model_object("diffusion_model")
    replaced.add_object_patch("diffusion_model", torch.compile(module, backend=backend))
    nameless.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    callable_object = nameless.clone()
    nameless.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, COMPILE_KEY, lambda executor, *args, **kwargs: executor(*args)
    )
    callable_object.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY, partial(print))
    del without_options.model_options[TORCH_COMPILE_KWARGS]
    return {"replaced": replaced, "nameless": nameless, "object": callable_object, "no options": without_options}


def quantize_with_optimizers(source: str, table: Tensor, output: str, optimizers: list[str]) -> dict[str, Any]:
    """Quantize twice with each optimizer of learned rounding."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    return {optimizer: quantize_twice(model, table, svd_rounding(optimizer)) for optimizer in optimizers}


def quantize_twice(model: Any, table: Tensor, rounding: dict[str, Any]) -> dict[str, Any]:
    first, second = (quantize_model(model, "int8_row", rounding) for _ in range(2))
    latents = [sample_briefly(node.args[0], table) for node in (first, second)]
    pairs = [layer["errors"]["projected"] for layer in layer_rows(first)]
    return {
        "better": all(pair["error"] <= pair["nearest"] for pair in pairs),
        "texts": [node.ui["text"][0] for node in (first, second)],
        "equal": torch.equal(*latents),
    }


def refuse_and_requantize(source: str, output: str, prefixes: list[str]) -> dict[str, Any]:
    """Ask for what is refused, save below each of the prefixes, quantize again and by a recipe."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    quantized = quantize_model(model, "int8_row").args[0]

    def save_as(patcher: Any, prefix: str) -> Any:
        return call(extension.SaveQuantizedModel, model=patcher, filename_prefix=prefix)

    actions = {
        "profile": partial(quantize_model, model, "int8_row", profile="flux"),
        "override": partial(quantize_model, model, "int8_row", overrides="ffn"),
        "twice": partial(quantize_model, quantized, "int8_row"),
        "not quantized": partial(save_as, model, "x"),
        **{prefix: partial(save_as, quantized, prefix) for prefix in prefixes},
    }
    errors = {name: error_message(action) for name, action in actions.items()}
    files = [name for _, _, names in os.walk(os.path.dirname(output)) for name in names]
    recipe = call(extension.QuantizationRecipe, format="float8_e5m2", profile="auto", rounding=NEAREST).args[0]
    return {
        "errors": errors,
        "files": files,
        "requantized_layers": len(layer_rows(quantize_model(quantized, "float8_e4m3fn", dequantize=True))),
        "recipe_formats": sorted(
            {row["format"] for row in layer_rows(quantize_model(model, "int8_row", recipe=recipe))}
        ),
    }
