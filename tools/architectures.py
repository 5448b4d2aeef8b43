"""Write the complete key and shape list of each architecture, built by ComfyUI's own classes on the meta device.

    python tools/architectures.py COMFYUI_PATH [NAME ...]

Run it with ComfyUI's interpreter. ComfyUI must detect every list as the model that it claims to be, and a diffusion
model built from the detected configuration must have the same list.

A line has the name, shape and flags of a tensor; ``{0-18}`` is a range of block numbers. Flags: ``L``, the module is
ComfyUI's quantizable Linear; ``E``, its quantizable Embedding; ``S``, ComfyUI's detection reads the tensor's shape.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "tests" / "data" / "architectures"

Config = dict[str, Any]
Tensors = dict[str, tuple[tuple[int, ...], str]]
"""Name -> (shape, flags)."""

FLUX: Config = dict(
    image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072,
    mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
    qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
FLUX2: Config = dict(
    image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=15360, hidden_size=6144,
    mlp_ratio=3.0, num_heads=48, depth=8, depth_single_blocks=48, axes_dim=[32] * 4, theta=2000, patch_size=1,
    qkv_bias=False, guidance_embed=True, txt_ids_dims=[3], global_modulation=True, mlp_silu_act=True, ops_bias=False,
)  # fmt: skip
CHROMA: Config = dict(
    image_model="chroma", in_channels=64, out_channels=64, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
    num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True,
    in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5, txt_ids_dims=[], vec_in_dim=None,
)  # fmt: skip
RADIANCE: Config = CHROMA | dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=16, nerf_hidden_size=64, nerf_mlp_ratio=4,
    nerf_depth=4, nerf_max_freqs=8, nerf_tile_size=512, nerf_final_head_type="conv", nerf_embedder_dtype=None,
    use_x0=True, use_sequential_txt_ids=False,
)  # fmt: skip
QWEN_IMAGE: Config = dict(image_model="qwen_image", in_channels=64, num_layers=60)
LUMINA2: Config = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=2304, cap_feat_dim=2304, n_layers=26, qk_norm=True,
    n_heads=24, n_kv_heads=8, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], ffn_dim_multiplier=4.0,
)  # fmt: skip
ZIMAGE: Config = LUMINA2 | dict(
    dim=3840, cap_feat_dim=2560, n_layers=30, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48],
    ffn_dim_multiplier=8 / 3, z_image_modulation=True, pad_tokens_multiple=32,
)  # fmt: skip
WAN: Config = dict(
    image_model="wan2.1", model_type="t2v", dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16,
)  # fmt: skip
HUNYUAN: Config = dict(
    image_model="hunyuan_video", in_channels=65, out_channels=32, patch_size=[1, 1, 1], hidden_size=2048, num_heads=16,
    depth=54, depth_single_blocks=0, context_in_dim=3584, vec_in_dim=None, byt5=True, meanflow=False,
    use_cond_type_embedding=True, vision_in_dim=1152, meanflow_sum=True, guidance_embed=False, axes_dim=[16, 56, 56],
    theta=256, mlp_ratio=4.0, qkv_bias=True,
)  # fmt: skip
LTX23: Config = dict(
    image_model="ltxav", apply_gated_attention=True, caption_proj_before_connector=True, cross_attention_adaln=True,
    connector_apply_gated_attention=True, connector_num_layers=8, connector_num_attention_heads=32,
    audio_connector_attention_head_dim=64, audio_connector_num_attention_heads=32,
)  # fmt: skip
SD35: Config = dict(
    in_channels=16, patch_size=2, out_channels=16, depth=38, input_size=None, adm_in_channels=2048, num_patches=36864,
    pos_embed_max_size=192, qk_norm="rms", pos_embed_scaling_factor=None,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 38 * 64}},
)  # fmt: skip
SD35_MEDIUM: Config = SD35 | dict(
    depth=24, num_patches=147456, pos_embed_max_size=384, x_block_self_attn_layers=list(range(13)),
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 24 * 64}},
)  # fmt: skip
SDXL: Config = dict(
    image_size=32, use_spatial_transformer=True, legacy=False, num_classes="sequential", adm_in_channels=2816,
    in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2], transformer_depth=[0, 0, 2, 2, 10, 10],
    channel_mult=[1, 2, 4], transformer_depth_middle=10, use_linear_in_transformer=True, context_dim=2048,
    num_head_channels=64, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], use_temporal_attention=False,
    use_temporal_resblock=False,
)  # fmt: skip
SDXL_REFINER: Config = SDXL | dict(
    adm_in_channels=2560, model_channels=384, num_res_blocks=[2] * 4, transformer_depth=[0, 0, 4, 4, 4, 4, 0, 0],
    channel_mult=[1, 2, 4, 4], transformer_depth_middle=4, context_dim=1280,
    transformer_depth_output=[0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
)  # fmt: skip
HIDREAM: Config = dict(
    image_model="hidream", attention_head_dim=128, axes_dims_rope=[64, 32, 32], caption_channels=[4096, 4096],
    max_resolution=[128, 128], in_channels=16, llama_layers=[*range(32), *[31] * 16], num_attention_heads=20,
    num_routed_experts=4, num_activated_experts=2, num_layers=16, num_single_layers=32, out_channels=16, patch_size=2,
    text_emb_dim=2048,
)  # fmt: skip
ANIMA: Config = dict(
    image_model="anima", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=2048, num_blocks=28, num_heads=16, crossattn_emb_channels=1024,
    pos_emb_cls="rope3d", use_adaln_lora=True,
)  # fmt: skip

WAN_MODEL, FLUX_MODEL = "comfy.ldm.wan.model:WanModel", "comfy.ldm.flux.model:Flux"
RADIANCE_MODEL = "comfy.ldm.chroma_radiance.model:ChromaRadiance"
LUMINA_MODEL = "comfy.ldm.lumina.model:NextDiT"
MMDIT_MODEL = "comfy.ldm.modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper"
UNET_MODEL = "comfy.ldm.modules.diffusionmodules.openaimodel:UNetModel"
HUNYUAN_MODEL, LTX_MODEL = "comfy.ldm.hunyuan_video.model:HunyuanVideo", "comfy.ldm.lightricks.av_model:LTXAVModel"
QWEN_MODEL = "comfy.ldm.qwen_image.model:QwenImageTransformer2DModel"

# name: (class, configuration, class of comfy.supported_models that ComfyUI must detect)
DIFFUSION: dict[str, tuple[str, Config, str]] = {
    "flux_dev": (FLUX_MODEL, FLUX, "Flux"),
    "flux_schnell": (FLUX_MODEL, FLUX | {"guidance_embed": False}, "FluxSchnell"),
    "flux2_dev": (FLUX_MODEL, FLUX2, "Flux2"),
    "flux2_klein_4b": (FLUX_MODEL, FLUX2 | dict(hidden_size=3072, num_heads=24, depth=5, depth_single_blocks=20,
                                                context_in_dim=7680, guidance_embed=False), "Flux2"),
    "flux2_klein_9b": (FLUX_MODEL, FLUX2 | dict(hidden_size=4096, num_heads=32, depth=8, depth_single_blocks=24,
                                                context_in_dim=12288, guidance_embed=False), "Flux2"),
    "chroma": ("comfy.ldm.chroma.model:Chroma", CHROMA, "Chroma"),
    "radiance": (RADIANCE_MODEL, RADIANCE, "ChromaRadiance"),
    "radiance_linear": (RADIANCE_MODEL, RADIANCE | {"nerf_final_head_type": "linear", "use_x0": False},
                        "ChromaRadiance"),
    "qwen_image": (QWEN_MODEL, QWEN_IMAGE, "QwenImage"),
    "qwen_image_layered": (QWEN_MODEL, QWEN_IMAGE | {"use_additional_t_cond": True}, "QwenImage"),
    "zimage": (LUMINA_MODEL, ZIMAGE, "ZImage"),
    "zimage_omni": (LUMINA_MODEL, ZIMAGE | {"siglip_feat_dim": 1152}, "ZImage"),
    "lumina2": (LUMINA_MODEL, LUMINA2, "Lumina2"),
    "newbie": (LUMINA_MODEL, LUMINA2 | dict(cap_feat_dim=2560, n_layers=36, clip_text_dim=1024), "Lumina2"),
    "wan_t2v_14b": (WAN_MODEL, WAN, "WAN21_T2V"),
    "wan_t2v_1_3b": (WAN_MODEL, WAN | dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30), "WAN21_T2V"),
    "wan_i2v_14b": (WAN_MODEL, WAN | dict(model_type="i2v", in_dim=36), "WAN21_I2V"),
    "wan_flf2v_14b": (WAN_MODEL, WAN | dict(model_type="i2v", in_dim=36, flf_pos_embed_token_number=514), "WAN21_I2V"),
    "wan_fun_control_14b": (WAN_MODEL, WAN | dict(model_type="i2v", in_dim=48, in_dim_ref_conv=16),
                            "WAN21_FunControl2V"),
    "wan22_5b": (WAN_MODEL, WAN | dict(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48),
                 "WAN22_T2V"),
    "wan_vace_14b": ("comfy.ldm.wan.model:VaceWanModel", WAN | dict(model_type="vace", vace_layers=8, vace_in_dim=96),
                     "WAN21_Vace"),
    "wan_camera_14b": ("comfy.ldm.wan.model:CameraWanModel", WAN | dict(model_type="camera", in_dim=32),
                       "WAN21_Camera"),
    "wan22_animate_14b": ("comfy.ldm.wan.model_animate:AnimateWanModel", WAN | dict(model_type="animate", in_dim=36),
                          "WAN22_Animate"),
    "wan22_s2v_14b": ("comfy.ldm.wan.model:WanModel_S2V", WAN | dict(model_type="s2v"), "WAN22_S2V"),
    "wan_humo_17b": ("comfy.ldm.wan.model:HumoWanModel", WAN | dict(model_type="humo", in_dim=36), "WAN21_HuMo"),
    "hunyuan_video15": (HUNYUAN_MODEL, HUNYUAN, "HunyuanVideo15"),
    "hunyuan_video15_sr": (HUNYUAN_MODEL, HUNYUAN | dict(in_channels=98, meanflow=True), "HunyuanVideo15_SR_Distilled"),
    "ltx2_19b": (LTX_MODEL, {"image_model": "ltxav"}, "LTXAV"),
    "ltx23_22b": (LTX_MODEL, LTX23, "LTXAV"),
    "sd35_large": (MMDIT_MODEL, SD35, "SD3"),
    "sd35_medium": (MMDIT_MODEL, SD35_MEDIUM, "SD3"),
    "sdxl_base": (UNET_MODEL, SDXL, "SDXL"),
    "sdxl_refiner": (UNET_MODEL, SDXL_REFINER, "SDXLRefiner"),
    "hidream_i1": ("comfy.ldm.hidream.model:HiDreamImageTransformer2DModel", HIDREAM, "HiDream"),
    "hidream_o1": ("comfy.ldm.hidream_o1.model:HiDreamO1Transformer", {"image_model": "hidream_o1"}, "HiDreamO1"),
    "anima": ("comfy.ldm.anima.model:Anima", ANIMA, "Anima"),
}  # fmt: skip

T5, UMT5 = "t5_config_xxl.json", "umt5_config_xxl.json"
LLAMA, QWEN35, QWEN3VL, GEMMA4 = (f"comfy.text_encoders.{name}" for name in ("llama", "qwen35", "qwen3vl", "gemma4"))
# name: (class, configuration or its file, member of comfy.sd.TEModel that ComfyUI must detect)
ENCODERS: dict[str, tuple[str, Config | str, str]] = {
    "t5xxl": ("comfy.text_encoders.t5:T5", T5, "T5_XXL"),
    "t5xxl_with_decoder": ("transformers:T5ForConditionalGeneration", T5, "T5_XXL"),
    "t5xxl_old": ("comfy.text_encoders.t5:T5", "t5_old_config_xxl.json", "T5_XXL_OLD"),
    "t5_xl": ("comfy.text_encoders.t5:T5", "t5_pile_config_xl.json", "T5_XL"),
    "t5_base": ("comfy.text_encoders.t5:T5", "t5_config_base.json", "T5_BASE"),
    "clip_l": ("comfy.clip_model:CLIPTextModel", "../sd1_clip_config.json", "CLIP_L"),
    "umt5xxl": ("comfy.text_encoders.t5:T5", UMT5, "T5_XXL"),
    "umt5xxl_with_decoder": ("transformers:UMT5ForConditionalGeneration", UMT5, "T5_XXL"),
    "qwen25_3b": (f"{LLAMA}:Qwen25_3B", {}, "QWEN25_3B"),
    "qwen25_vl_7b": (f"{LLAMA}:Qwen25_7BVLI", {}, "QWEN25_7B"),
    "qwen3_06b": (f"{LLAMA}:Qwen3_06B", {}, "QWEN3_06B"),
    "qwen3_2b": (f"{LLAMA}:Ovis25_2B", {}, "QWEN3_2B"),
    "qwen3_4b": (f"{LLAMA}:Qwen3_4B", {}, "QWEN3_4B"),
    "qwen3_8b": (f"{LLAMA}:Qwen3_8B", {}, "QWEN3_8B"),
    "qwen3_vl_4b": (f"{QWEN3VL}:Qwen3VL@qwen3vl_4b", {}, "QWEN3VL_4B"),
    "qwen3_vl_8b": (f"{QWEN3VL}:Qwen3VL@qwen3vl_8b", {}, "QWEN3VL_8B"),
    "qwen35_4b": (f"{QWEN35}:Qwen35@qwen35_4b", {}, "QWEN35_4B"),
    "qwen35_27b": (f"{QWEN35}:Qwen35@qwen35_27b", {}, "QWEN35_27B"),
    "llama3_8b": (f"{LLAMA}:Llama2", {}, "LLAMA3_8"),
    "mistral3_24b": (f"{LLAMA}:Mistral3Small24B", {}, "MISTRAL3_24B"),
    "mistral3_24b_flux2": (f"{LLAMA}:Mistral3Small24B", dict(num_hidden_layers=30, final_norm=False),
                           "MISTRAL3_24B_PRUNED_FLUX2"),
    "ministral3_3b": (f"{LLAMA}:Ministral3_3B", {}, "MINISTRAL_3_3B"),
    "gemma2_2b": (f"{LLAMA}:Gemma2_2B", {}, "GEMMA_2_2B"),
    "gemma3_4b": (f"{LLAMA}:Gemma3_4B_Vision", {}, "GEMMA_3_4B_VISION"),
    "gemma3_12b": (f"{LLAMA}:Gemma3_12B", {}, "GEMMA_3_12B"),
    "gemma4_e4b": (f"{GEMMA4}:Gemma4_E4B", {}, "GEMMA_4_E4B"),
    "gemma4_12b": (f"{GEMMA4}:Gemma4_12B", {}, "GEMMA_4_12B"),
}  # fmt: skip
# Prefix in ComfyUI -> prefix in the files, which ComfyUI renames while loading.
FILE_NAMES = {"model.": "model.language_model.", "visual.": "model.visual."}


class ShapeProbe:
    """Stands in for a tensor and records that its shape was read; it has nothing else."""

    def __init__(self, name: str, shape: tuple[int, ...], reads: set[str]) -> None:
        self._name, self._shape, self._reads = name, shape, reads

    @property
    def shape(self) -> tuple[int, ...]:
        self._reads.add(self._name)
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]


def load_class(path: str) -> type:
    """Import "module:class" or "module:class@model_type"."""
    module, _, name = path.partition(":")
    name, _, model_type = name.partition("@")
    kind = getattr(importlib.import_module(module), name)
    return type(name, (kind,), {"model_type": model_type}) if model_type else kind


def list_tensors(module: Any, operations: Any) -> Tensors:
    """List everything that a module loads from a file."""
    tensors: Tensors = {}
    kinds = {operations.Linear: "L", operations.Embedding: "E"}
    for path, child in module.named_modules():
        flag = next((flag for kind, flag in kinds.items() if isinstance(child, kind)), "")
        for name, tensor in itertools.chain(child.named_parameters(recurse=False), child.named_buffers(recurse=False)):
            if name not in child._non_persistent_buffers_set:
                tensors[f"{path}.{name}".lstrip(".")] = (tuple(tensor.shape), flag if name == "weight" else "")
        if flag == "L":
            tensors[f"{path}.weight"] = (tuple(child._orig_shape), flag)
    return tensors


def build(path: str, *args: Any, **kwargs: Any) -> Any:
    import torch

    with torch.device("meta"):
        return load_class(path)(*args, **kwargs)


def mixed_precision_operations(text_encoder: bool) -> Any:
    import comfy.ops
    import torch

    return comfy.ops.mixed_precision_ops({}, torch.bfloat16, full_precision_mm=text_encoder)


def list_diffusion_model(path: str, config: Config, expected: str) -> Tensors:
    import comfy.model_detection as detection
    import torch

    operations = mixed_precision_operations(False)
    make = partial(build, path, dtype=torch.bfloat16, device="meta", operations=operations)
    tensors = list_tensors(make(**config), operations)
    reads: set[str] = set()
    state = {name: ShapeProbe(name, shape, reads) for name, (shape, _) in tensors.items()}
    # LTX-2's files have their configuration in the header.
    metadata = {"config": json.dumps({"transformer": config})} if config.get("image_model") == "ltxav" else None
    detected = detection.detect_unet_config(state, "", metadata=metadata)
    if "image_model" not in config:
        detected.pop("image_model", None)
    matched = detection.model_config_from_unet_config(detected, state)
    if type(matched).__name__ != expected:
        raise SystemExit(f"ComfyUI detects {path} as {type(matched).__name__}, not {expected}")
    if list_tensors(make(**matched.unet_config), operations) != tensors:
        raise SystemExit(f"the configuration that ComfyUI detects of {path} builds another list")
    return flag_reads(tensors, reads)


def list_encoder(path: str, config: Config | str, expected: str) -> Tensors:
    import comfy.sd
    import torch

    operations = mixed_precision_operations(True)
    if isinstance(config, str):
        config = json.loads((Path(comfy.sd.__file__).parent / "text_encoders" / config).read_text())
    kind = "comfy.text_encoders.t5:T5" if path.startswith("transformers") else path
    tensors = list_tensors(build(kind, config, torch.bfloat16, "meta", operations), operations)
    if path.startswith("transformers"):
        tensors = add_decoder(path, config, tensors)
    if "@" in path:
        tensors = {rename(name): value for name, value in tensors.items()}
    reads: set[str] = set()
    model = comfy.sd.detect_te_model({name: ShapeProbe(name, shape, reads) for name, (shape, _) in tensors.items()})
    if model is None or model.name != expected:
        raise SystemExit(f"ComfyUI detects {path} as {model}, not {expected}")
    return flag_reads(tensors, reads)


def add_decoder(path: str, config: Config, encoder: Tensors) -> Tensors:
    """List the published encoder-decoder file by transformers' class, with the flags of ComfyUI's encoder."""
    kind = load_class(path)
    whole = {**config, "feed_forward_proj": "gated-gelu"}
    model = build(path, kind.config_class(**whole))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name, (shape, _) in encoder.items() if shapes.get(name) != shape]
    if missing:
        raise SystemExit(f"{path} lacks {missing[:3]}")
    return {name: (shape, encoder.get(name, (shape, ""))[1]) for name, shape in shapes.items()}


def rename(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in FILE_NAMES.items() if name.startswith(old)), name)


def flag_reads(tensors: Tensors, reads: set[str]) -> Tensors:
    return {name: (shape, flags + ("S" if name in reads else "")) for name, (shape, flags) in tensors.items()}


def format_ranges(numbers: list[int]) -> str:
    """Format numbers: [0, 1, 2, 5] -> "0-2,5"."""
    groups = itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in group] for _, group in groups]
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def format_lines(tensors: Tensors) -> Iterator[str]:
    """Format one line per tensor; tensors that differ only in a block number share a line."""
    rows = {(*name.split("."),): value for name, value in tensors.items()}
    for position in range(max(map(len, rows))):
        groups: dict[Any, list[str]] = defaultdict(list)
        for parts, value in rows.items():
            numbered = len(parts) > position and parts[position].isdigit()
            key = (parts[:position], parts[position + 1 :] if numbered else parts[position:], numbered, value)
            groups[key].append(parts[position] if numbered else "")
        rows = {}
        for (head, tail, numbered, value), texts in groups.items():
            number = f"{{{format_ranges([int(text) for text in texts])}}}" if len(texts) > 1 else texts[0]
            middle = (number,) if numbered else ()
            rows[(*head, *middle, *tail)] = value
    for parts, (shape, flags) in rows.items():
        yield " ".join(filter(None, (".".join(parts), "x".join(map(str, shape)) or "scalar", flags)))


def main(arguments: list[str]) -> None:
    comfy_path, *names = arguments
    sys.argv[1:] = ["--cpu"]
    sys.path.insert(0, comfy_path)
    import comfy.options
    import comfyui_version

    comfy.options.enable_args_parsing()

    OUT.mkdir(parents=True, exist_ok=True)
    jobs = {name: (list_diffusion_model, job) for name, job in DIFFUSION.items()}
    jobs |= {name: (list_encoder, job) for name, job in ENCODERS.items()}
    for name in names or jobs:
        list_model, job = jobs[name]
        tensors = list_model(*job)
        head = f"# {job[2]} of ComfyUI {comfyui_version.__version__}: {job[0]}"
        lines = [head, *format_lines(tensors)]
        (OUT / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(tensors)} tensors, {len(lines) - 1} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
