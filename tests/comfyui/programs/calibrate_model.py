"""Programs of test_calibration.py."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management as management
import comfy.sample
import folder_paths
import torch
from calibrated_rounding.nodes.host.origin import read_diffusion_tensors, read_origin
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import count_hooks, load_unet, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import CALIBRATED, call, load_extension, quantize_model
from calibrated_rounding.tools.comfyui.inside.sampling import conditions, sample, sample_briefly
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch import Tensor

extension = load_extension()


def record_samplings(source: str, table: Tensor, output: str) -> dict[str, Any]:
    """Record samplings that end well, that fail, and that are compiled."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    plain = sample_briefly(model, table)
    recording, recorder = record(model)
    equal = torch.equal(plain, sample_briefly(recording, table))
    hooks = count_hooks(model.model)
    once = collect(recorder)
    counts = count_rows(once)
    clones_equal = torch.equal(plain, sample_briefly(recording.clone(), table))
    twice = collect(recorder)
    result = {
        "equal": equal,
        "equal_through_clones": clones_equal,
        "hooks_left": hooks,
        "counts": counts,
        "counts_twice": count_rows(twice),
        "first_unchanged": count_rows(once) == counts,
        "leaders": dict(once.shared),
        "absmax": {layer: stats.absmax for layer, stats in once.items()},
        "linear_layers": linear_layers(model.model.diffusion_model),
        "digest_once_equal": once.digest == collect(recorder).digest,
        "digest_twice_equal": twice.digest == collect(recorder).digest,
        "error": fail_while_recording(ValueError("broken"), model, recording, table),
        "interrupt": fail_while_recording(management.InterruptProcessingException(), model, recording, table),
    }
    return {
        **result,
        "equal_without_recorder": torch.equal(plain, sample_briefly(model, table)),
        **record_in_small_budget(model, table),
        **quantize_recording_model(model, recording, recorder, table),
        "compiled_counts": record_compiled(model, table),
    }


def record(model: Any, rows: int = 2048, budget_gib: float = 2.0) -> Any:
    """Execute Record Calibration; returns the model and the recorder."""
    return call(extension.RecordCalibration, model=model, rows=rows, budget_gib=budget_gib).args


def collect(recorder: Any) -> Any:
    return call(extension.CollectCalibration, recorder=recorder, after=None).args[0]


def count_rows(calibration: Any) -> dict[str, int]:
    return {layer: stats.count for layer, stats in calibration.items()}


def linear_layers(module: torch.nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]


def fail_while_recording(raised: BaseException, model: Any, recording: Any, table: Tensor) -> dict[str, Any]:
    """Raise an exception in the first step of a recorded sampling."""
    hooks = list[int]()

    def callback(*_: Any) -> None:
        hooks.append(count_hooks(model.model))
        raise raised

    empty, asked = torch.zeros(1, 16, 1, 8, 8), conditions(table, 1)
    result = {"hooked": False, "raised": False}
    try:
        comfy.sample.sample(
            recording, empty + 1, 4, 3.0, "euler", "simple", *asked.values(), empty,
            callback=callback, disable_pbar=True, seed=0,
        )  # fmt: skip
    except BaseException as error:
        result = {"hooked": hooks[0] > 0, "raised": error is raised}
    return {**result, "hooks_left": count_hooks(model.model)}


def record_in_small_budget(model: Any, table: Tensor) -> dict[str, Any]:
    recording, recorder = record(model, rows=64, budget_gib=0.0001)
    sample_briefly(recording, table)
    samples = collect(recorder).samples.values()
    return {
        "small_bytes": sum(sample.rows.nbytes for sample in samples),
        "small_rows": sorted({len(sample.rows) for sample in samples}),
    }


def quantize_recording_model(model: Any, recording: Any, recorder: Any, table: Tensor) -> dict[str, Any]:
    """Ask for recordings that cannot be made, and sample a quantized copy of a recording model."""
    quantized = quantize_model(model, "int8_row").args[0]
    before = count_rows(collect(recorder))
    sample_briefly(quantize_model(recording, "int8_row").args[0], table)
    return {
        "quantized_error": error_message(lambda: record(quantized)),
        "empty_error": error_message(lambda: collect(record(model)[1])),
        "quantized_copy_records": count_rows(collect(recorder)) != before,
    }


def record_compiled(model: Any, table: Tensor) -> dict[str, int]:
    """Record a model that was compiled, and has run, before."""
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    sample_briefly(compiled, table)
    recording, recorder = record(compiled)
    sample_briefly(recording, table)
    return count_rows(collect(recorder))


def quantize_with_calibration(
    source: str, other: str, table: Tensor, output: str, formats: list[str]
) -> dict[str, Any]:
    """Calibrate a model, quantize it in some formats, and sample; ``other`` is a model with one other weight."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    latent, settings = {"samples": torch.zeros(10, 16, 1, 8, 8)}, {"steps": 20, "cfg": 3.0, "sampler_name": "euler"}
    calibration, report = call(
        extension.CalibrateModel, model=model, **conditions(table, 10), latent_image=latent, seed=1000, runs=2,
        scheduler="simple", rows=2048, budget_gib=2.0, **settings,
    ).args  # fmt: skip
    path = call(extension.SaveCalibration, calibration=calibration, name="digits").args[0]
    options = extension.LoadCalibration.define_schema().inputs[0].options
    loaded = call(extension.LoadCalibration, file=os.path.basename(path)).args[0]
    reference = sample_seeds(model, table)
    return {
        "report": report,
        "path": path,
        "listed": options,
        "round_trip": loaded.digest == calibration.digest,
        "formats": {fmt: compare_with_nearest(model, fmt, calibration, table, reference) for fmt in formats},
        **quantize_again(model, loaded, table),
        **use_statistics(model, loaded),
        "other_error": error_message(lambda: calibrated(load_unet(other)[0], "int8_row", calibration)),
        "missing_error": error_message(lambda: quantize_model(model, "int8_row", CALIBRATED)),
    }


def calibrated(model: Any, fmt: str, calibration: Any) -> Any:
    return quantize_model(model, fmt, CALIBRATED, calibration=calibration)


def sample_seeds(model: Any, table: Tensor) -> Tensor:
    """Latents ``[3, 10, 16, 1, 8, 8]`` of seeds that the calibration did not see."""
    return torch.stack([sample(model, table, seed) for seed in range(3)])


def compare_with_nearest(model: Any, fmt: str, calibration: Any, table: Tensor, reference: Tensor) -> dict[str, Any]:
    nearest, learned = quantize_model(model, fmt), calibrated(model, fmt, calibration)

    def errors(node: Any) -> dict[str, float]:
        quantized = node.args[0]
        return {
            "sampled": relative_error(sample_seeds(quantized, table), reference),
            "weights": sample_with_weights(model, quantized, table, reference),
        }

    return {
        "nearest": errors(nearest),
        "calibrated": errors(learned),
        "layers": learned.ui["calibrated_rounding"][0]["layers"],
    }


def sample_with_weights(model: Any, quantized: Any, table: Tensor, reference: Tensor) -> float:
    """Error of the rounded weights in the float model, whose inputs are not quantized."""
    floats = as_float(StateDictSource(read_diffusion_tensors(read_origin(quantized))), True, torch.float32)
    inner = model.model.diffusion_model
    weights = {key: tensor.clone() for key, tensor in inner.state_dict().items()}
    inner.load_state_dict({key: floats.read(key) for key in weights})
    error = relative_error(sample_seeds(model, table), reference)
    inner.load_state_dict(weights)
    return error


def quantize_again(model: Any, loaded: Any, table: Tensor) -> dict[str, str]:
    """Read the node's text for a cached result, for nearest rounding, and for another calibration."""
    recording, recorder = record(model)
    sample_briefly(recording, table)
    return {
        "text_again": calibrated(model, "float8_e4m3fn", loaded).ui["text"][0],
        "text_nearest": quantize_model(model, "float8_e4m3fn", calibration=loaded).ui["text"][0],
        "text_other_calibration": calibrated(model, "float8_e4m3fn", collect(recorder)).ui["text"][0],
    }


def use_statistics(model: Any, loaded: Any) -> dict[str, Any]:
    """Write input scales and corrected biases from a calibration."""
    settings = {"calibration": loaded, "input_scale": "absmax", "bias_correction": "measured"}
    quantized = quantize_model(model, "float8_e4m3fn", **settings).args[0]
    key = "diffusion_model.blocks.0.self_attn.q.bias"
    before, after = (patcher.model.state_dict() for patcher in (model, quantized))
    return {
        "input_scales": sum(name.endswith(".input_scale") for name in after),
        "biases_corrected": not torch.equal(before[key], after[key]),
    }
