"""Programs of test_calibrate_encoder.py."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management as management
import comfy.sd
import comfy.text_encoders.hunyuan_video as hunyuan_video
import comfy.text_encoders.llama as llama
import comfy.utils
import folder_paths
import torch
from calibrated_rounding.tests.comfyui.programs import small_encoders
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import count_hooks
from calibrated_rounding.tools.comfyui.inside.pack import (
    CALIBRATED,
    NEAREST,
    call,
    layer_rows,
    load_extension,
    quantize_encoder,
)
from torch import Tensor

extension = load_extension()

INPUTS = extension.CalibrateTextEncoder.define_schema().inputs
PROMPTS = next(entry for entry in INPUTS if entry.id == "prompts").default
UNSEEN = ("a lighthouse on a cliff in a storm, oil on canvas", "blurry, cropped", "three grey cats asleep on a piano")
UP_PROJ = "model.layers.1.mlp.up_proj"
FP8 = "float8_e4m3fn"


def calibrate_qwen(folder: str) -> dict[str, Any]:
    """Calibrate Qwen, use and refuse calibrations, and end runs early; files go to ``folder``."""
    prepare(folder)
    sizes = {"intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    small_encoders.shrink_qwen(**sizes)
    path = os.path.join(folder, "qwen.safetensors")
    small_encoders.save_random_on_subspace(path, small_encoders.build_qwen())
    clip = comfy.sd.load_clip([path])
    reference = encode_unseen(clip)

    progress = list[list[int]]()
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: progress.append([value, total]))
    node = calibrate(clip)
    comfy.utils.set_progress_bar_global_hook(None)
    calibration, report = node.args
    tokens = sum(len(clip.tokenize(line)["qwen3_06b"][0]) for line in PROMPTS.splitlines())
    recorded = {
        "prompts": PROMPTS.splitlines(),
        "progress": progress[-1],
        "report": report,
        "shown": node.ui["text"][0],
        "counts": {layer: stats.count for layer, stats in calibration.items()},
        "linear": linear_layers(clip.cond_stage_model.qwen3_06b.transformer),
        "tokens": tokens,
        "hooks": count_hooks(clip.cond_stage_model),
        "unchanged": is_unchanged(clip, reference),
    }
    return {
        **recorded,
        **vary_inputs(clip),
        **round_by_calibration(clip, calibration, reference),
        "unchanged_after_quantizing": is_unchanged(clip, reference),
        "errors": refuse_calibrations(clip, path, calibration),
        "interrupt": interrupt_after_two_prompts(clip),
        "out_of_memory": run_out_of_memory(clip),
        "unchanged_at_end": is_unchanged(clip, reference),
    }


def prepare(folder: str) -> None:
    os.chdir(folder)
    folder_paths.set_output_directory(folder)
    torch.manual_seed(0)


def calibrate(clip: Any, prompts: str = PROMPTS, rows: int = 2048) -> Any:
    return call(extension.CalibrateTextEncoder, clip=clip, prompts=prompts, rows=rows, budget_gib=2.0)


def quantize(
    clip: Any, calibration: Any, rounding: dict[str, Any] = CALIBRATED, fmt: str = FP8, **settings: Any
) -> Any:
    return quantize_encoder(clip, fmt, rounding, calibration=calibration, **settings)


def encode_unseen(clip: Any) -> list[Tensor]:
    return [clip.encode_from_tokens(clip.tokenize(prompt)).float() for prompt in UNSEEN]


def encoding_error(clip: Any, reference: list[Tensor]) -> float:
    pairs = list(zip(encode_unseen(clip), reference, strict=True))
    error = sum((a - b).square().sum() for a, b in pairs)
    return float((error / sum(b.square().sum() for _, b in pairs)) ** 0.5)


def is_unchanged(clip: Any, reference: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(encode_unseen(clip), reference, strict=True))


def linear_layers(module: torch.nn.Module) -> list[str]:
    return sorted(name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear))


def vary_inputs(clip: Any) -> dict[str, Any]:
    """Calibrate with fewer rows, and with blank lines among the prompts."""
    fewer = calibrate(clip, PROMPTS[:500], rows=64).args[0]
    blank = calibrate(clip, "an otter\n\n  \n a red bicycle ").args[0]
    return {
        "fewer": max(len(stats.rows) for stats in fewer.samples.values()),
        "blank_lines_ignored": blank.digest == calibrate(clip, "an otter\na red bicycle").args[0].digest,
    }


def round_by_calibration(clip: Any, calibration: Any, reference: list[Tensor]) -> dict[str, Any]:
    """Save and load the calibration, and quantize with it."""
    saved = call(extension.SaveCalibration, calibration=calibration, name="qwen").args[0]
    loaded = call(extension.LoadCalibration, file=os.path.basename(saved)).args[0]
    nearest, calibrated = quantize_encoder(clip, FP8), quantize(clip, calibration)
    scaled = quantize(clip, loaded, NEAREST, input_scale="absmax").args[0]
    return {
        "saved": saved,
        "round_trip": loaded.digest == calibration.digest,
        "nearest_error": encoding_error(nearest.args[0], reference),
        "calibrated_error": encoding_error(calibrated.args[0], reference),
        "layers": layer_rows(calibrated),
        "text_again": quantize(clip, loaded).ui["text"][0],
        "text_nearest": quantize(clip, loaded, NEAREST).ui["text"][0],
        "input_scales": sum(key.endswith(".input_scale") for key in scaled.cond_stage_model.state_dict()),
    }


def refuse_calibrations(clip: Any, path: str, calibration: Any) -> dict[str, str | None]:
    quantized = quantize_encoder(clip, FP8).args[0]
    changed = comfy.sd.load_clip([path])
    changed.cond_stage_model.state_dict()[f"qwen3_06b.transformer.{UP_PROJ}.weight"].mul_(-1)
    changed.patcher.cached_patcher_init = None
    return {
        "quantized": error_message(lambda: calibrate(quantized)),
        "empty": error_message(lambda: calibrate(clip, " \n\n")),
        "no clip": error_message(lambda: calibrate(None)),
        "no calibration": error_message(lambda: quantize(clip, None, fmt="int8_row")),
        "other model": error_message(lambda: quantize(changed, calibration, fmt="int8_row")),
    }


def interrupt_after_two_prompts(clip: Any) -> dict[str, Any]:
    """Interrupt a calibration while it encodes its second prompt."""
    encode, hooks = clip.encode_from_tokens_scheduled, list[int]()

    def encode_and_interrupt(tokens: Any) -> Any:
        hooks.append(count_hooks(clip.cond_stage_model))
        result = encode(tokens)
        if len(hooks) == 2:
            management.interrupt_current_processing()
        return result

    clip.encode_from_tokens_scheduled = encode_and_interrupt
    try:
        calibrate(clip)
        interrupted = False
    except management.InterruptProcessingException:
        interrupted = True
    finally:
        del clip.encode_from_tokens_scheduled
    left = count_hooks(clip.cond_stage_model)
    return {"interrupted": interrupted, "encoded": len(hooks), "hooked": min(hooks) > 0, "hooks_left": left}


def run_out_of_memory(clip: Any) -> dict[str, Any]:
    """Let a layer run out of memory during a calibration."""
    layer, hooks = clip.cond_stage_model.qwen3_06b.transformer.get_submodule(UP_PROJ), list[int]()

    def forward(*_: Any, **__: Any) -> None:
        hooks.append(count_hooks(clip.cond_stage_model))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    layer.forward = forward
    try:
        calibrate(clip)
        raised = False
    except torch.cuda.OutOfMemoryError:
        raised = True
    finally:
        del layer.forward
    return {"raised": raised, "hooked": hooks[-1] > 0, "hooks_left": count_hooks(clip.cond_stage_model)}


def calibrate_pairs(folder: str, wide: str) -> dict[str, Any]:
    """Calibrate a T5-XXL beside a CLIP-L and beside a Llama; ``wide`` is a pattern of layers to leave out."""
    prepare(folder)
    llama_sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    llama_sizes |= {"num_key_value_heads": 1, "vocab_size": 128256}
    llama_module = llama.Llama2(llama_sizes, torch.bfloat16, "cpu", comfy.ops.manual_cast)
    small_encoders.save_random_on_subspace("t5.safetensors", small_encoders.build_t5())
    small_encoders.save_random_on_subspace("llama.safetensors", llama_module)
    small_encoders.save_random("clip_l.safetensors", small_encoders.build_clip_l())
    hunyuan_video.LLAMA3Tokenizer = LetterTokenizer
    options = {"t5xxl_model_config": small_encoders.NARROW_T5, "llama_model_config": llama_sizes}

    def load(*names: str, kind: Any) -> Any:
        paths = [f"{name}.safetensors" for name in names]
        return comfy.sd.load_clip(paths, clip_type=kind, model_options=dict(options))

    def layers(clip: Any, calibration: Any) -> list[dict[str, Any]]:
        return layer_rows(quantize(clip, calibration, exclude=wide))

    prompts = "\n".join(PROMPTS.splitlines()[:4])
    flux = load("clip_l", "t5", kind=comfy.sd.CLIPType.FLUX)
    t5_calibration = calibrate(flux, prompts, rows=64).args[0]
    pair = load("t5", "llama", kind=comfy.sd.CLIPType.HIDREAM)
    pair_calibration = calibrate(pair, prompts, rows=64).args[0]
    hooks = count_hooks(pair.cond_stage_model)
    alone = load("t5", kind=comfy.sd.CLIPType.CHROMA)
    return {
        "t5_linear": linear_layers(flux.cond_stage_model.t5xxl.transformer),
        "llama_linear": linear_layers(pair.cond_stage_model.llama.transformer),
        "t5_recorded": sorted(t5_calibration),
        "pair_recorded": sorted(pair_calibration),
        "saved": call(extension.SaveCalibration, calibration=t5_calibration, name="t5").args[0],
        "layers": layers(flux, t5_calibration),
        "pair_layers": layers(pair, pair_calibration),
        "t5_layers_of_pair": layers(alone, pair_calibration),
        "hooks": hooks,
        "encoder_missing": error_message(lambda: layers(pair, t5_calibration)),
        "clip_l": error_message(lambda: calibrate(comfy.sd.load_clip(["clip_l.safetensors"]))),
    }


class LetterTokenizer:
    """Stands in for Llama's tokenizer, whose file not every checkout of ComfyUI has."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def tokenize_with_weights(self, text: str, *_: Any, **__: Any) -> list[list[tuple[int, float]]]:
        return [[(128000, 1.0), *((ord(letter), 1.0) for letter in text)]]
