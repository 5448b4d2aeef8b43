"""Program of test_encoder_families.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ops
import comfy.sd
import comfy.text_encoders.ernie as ernie
import comfy.text_encoders.hunyuan_video as hunyuan_video
import comfy.text_encoders.llama as llama
import folder_paths
import torch
from calibrated_rounding.tests.comfyui.programs import small_encoders
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import CALIBRATED, call, layer_rows, load_extension, quantize_encoder
from comfy.sd import CLIPType
from safetensors.torch import load_file, save_file
from torch import Tensor

extension = load_extension()

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
LLAMA_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 128256} | HEADS
QWEN_SIZES = {"hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": 3} | HEADS
"""208 inputs divide by 16, not by 32."""
MISTRAL_SIZES = {"intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 512} | HEADS
"""ComfyUI tells the model by its width, 3072, which therefore stays."""

PATCHED = tuple(f"{name}.weight" for name in ("q_proj", "v_proj", "SelfAttention.q", "SelfAttention.v"))
"""Ends of the names of the weights that the LoRA is on."""


class LetterTokenizer:
    """Stands in for tokenizers whose files do not come with ComfyUI."""

    start = 128000

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def tokenize_with_weights(self, text: str, *_: Any, **__: Any) -> list[list[tuple[int, float]]]:
        return [[(self.start, 1.0), *((ord(letter) % 256, 1.0) for letter in text)]]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class MistralLetterTokenizer(LetterTokenizer):
    start = 1


@dataclass(frozen=True, kw_only=True)
class Family:
    """A small encoder of one architecture."""

    name: str
    """ComfyUI's, of which the sizes are an option of its loader."""
    sizes: dict[str, int]
    build: Callable[[], torch.nn.Module]
    kind: CLIPType = CLIPType.STABLE_DIFFUSION

    def load(self, path: str) -> Any:
        options = {f"{self.name}_model_config": self.sizes}
        return comfy.sd.load_clip([path], clip_type=self.kind, model_options=options)


def make_t5(name: str, file: str, kind: CLIPType) -> Family:
    return Family(name=name, sizes=small_encoders.NARROW_T5, build=lambda: small_encoders.build_t5(file), kind=kind)


def make_llama(name: str, class_: type, sizes: dict[str, int]) -> Family:
    return Family(name=name, sizes=sizes, build=lambda: class_(sizes, torch.bfloat16, "cpu", comfy.ops.manual_cast))


FAMILIES: Mapping[str, Family] = {
    "t5xxl": make_t5("t5xxl", "t5_config_xxl.json", CLIPType.CHROMA),
    "umt5xxl": make_t5("umt5xxl", "umt5_config_xxl.json", CLIPType.WAN),
    "llama": make_llama("llama", llama.Llama2, LLAMA_SIZES),
    "qwen": make_llama("qwen25_3b", llama.Qwen25_3B, QWEN_SIZES),
    "mistral": make_llama("ministral3_3b", llama.Ministral3_3B, MISTRAL_SIZES),
}


def quantize_family(
    family: str, formats: list[str], prompts: list[str], unseen: list[str], slow: str, tokenizer: str
) -> dict[str, Any]:
    """Quantize an encoder in each format, to nearest and calibrated on prompts; save, reload and patch it.

    Args:
        family: A key of `FAMILIES`, or the name of a file that Load Example Text Encoder takes.
        formats: Names of formats.
        prompts: For the calibration.
        unseen: Prompts to compare encodings of.
        slow: Pattern of layers to leave out, which would take minutes.
        tokenizer: A file with a SentencePiece model, for encoders that bring theirs in their file.
    """
    torch.manual_seed(0)
    folder_paths.set_output_directory(os.path.abspath("output"))
    folder_paths.add_model_folder_path("text_encoders", os.path.abspath("output/clip"))
    hunyuan_video.LLAMA3Tokenizer, ernie.Mistral3Tokenizer = LetterTokenizer, MistralLetterTokenizer
    load, path = prepare_family(family, tokenizer)
    clip = load(path)

    def encode(other: Any) -> Tensor:
        return encode_prompts(other, unseen)

    reference = encode(clip)
    inputs = {"prompts": "\n".join(prompts), "rows": 512, "budget_gib": 1.0}
    calibration = call(extension.CalibrateTextEncoder, clip=clip, **inputs).args[0]

    def quantize_to(fmt: str) -> dict[str, Any]:
        settings = {"calibration": calibration, "exclude": slow}
        nearest = quantize_encoder(clip, fmt, **settings).args[0]
        node = quantize_encoder(clip, fmt, CALIBRATED, **settings)
        quantized = node.args[0]
        encoded, lora = encode(quantized), random_lora(clip)
        saved = call(extension.SaveQuantizedTextEncoder, clip=quantized, filename_prefix=f"clip/{fmt}").args[0]
        with_lora = encode(patch(quantized, lora))
        return {
            "layers": describe_quantized_layers(quantized.cond_stage_model),
            "rows": layer_rows(node),
            "report": node.args[1],
            "nearest_error": relative_error(encode(nearest), reference),
            "error": relative_error(encoded, reference),
            "reloaded_equal": torch.equal(encode(load(saved)), encoded),
            "lora_missing": relative_error(with_lora, reference),
            "lora_error": relative_error(with_lora, encode(patch(clip, lora))),
            "equal_without_lora": torch.equal(encode(quantized), encoded),
        }

    results = {fmt: quantize_to(fmt) for fmt in formats}
    return {"formats": results, "source_unchanged": torch.equal(encode(clip), reference)}


def prepare_family(family: str, tokenizer: str) -> tuple[Callable[[str], Any], str]:
    """The loader of a family, and a file for it with random weights."""
    if family not in FAMILIES:
        return load_example, family
    chosen, path = FAMILIES[family], f"{family}.safetensors"
    small_encoders.save_random_on_subspace(path, chosen.build())
    if chosen.kind is CLIPType.WAN:
        save_file(load_file(path) | {"spiece_model": load_file(tokenizer)["spiece_model"]}, path)
    return chosen.load, path


def load_example(path: str) -> Any:
    return call(extension.LoadExampleTextEncoder, file=os.path.basename(path)).args[0]


def encode_prompts(clip: Any, prompts: list[str]) -> Tensor:
    """Everything that a diffusion model would be given for these prompts, in one dimension."""
    values = list[Tensor]()
    for prompt in prompts:
        ((hidden, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        values += [hidden, *(extra[key] for key in sorted(extra) if isinstance(extra[key], Tensor))]
    return torch.cat([value.float().flatten() for value in values if value.is_floating_point()])


def random_lora(clip: Any) -> dict[str, Tensor]:
    """Make a LoRA of rank 4 for every block, under names that ComfyUI takes for any text encoder."""
    generator, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for key, weight in clip.cond_stage_model.state_dict().items():
        if key.endswith(PATCHED):
            name = f"text_encoders.{key.removesuffix('.weight')}"
            for side, shape in (("up", (weight.shape[0], 4)), ("down", (4, weight.shape[1]))):
                tensors[f"{name}.lora_{side}.weight"] = torch.randn(shape, generator=generator) * 0.1
    return tensors


def patch(clip: Any, lora: dict[str, Tensor]) -> Any:
    return comfy.sd.load_lora_for_models(None, clip, dict(lora), 0.0, 1.0)[1]
