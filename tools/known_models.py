"""Write the key and shape lists of models that ComfyUI knows and no profile describes, built by its own classes.

    python tools/known_models.py COMFYUI_PATH [NAME ...]

Run it with the interpreter of ComfyUI 0.33. ComfyUI must detect every list as the model that it claims to be;
``architectures.py`` describes the format of the lists.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import architectures as base
from architectures import FLUX_MODEL, HUNYUAN_MODEL, MMDIT_MODEL, UNET_MODEL, Config

OUT = Path(__file__).parents[1] / "tests" / "data" / "known"

SD21: Config = base.SDXL | dict(
    num_classes=None, adm_in_channels=None, num_res_blocks=[2] * 4, transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    channel_mult=[1, 2, 4, 4], transformer_depth_middle=1, context_dim=1024,
    transformer_depth_output=[1] * 9 + [0] * 3,
)  # fmt: skip
SD15: Config = SD21 | dict(use_linear_in_transformer=False, context_dim=768, num_heads=8, num_head_channels=-1)
SVD: Config = SD21 | dict(
    in_channels=8, num_classes="sequential", adm_in_channels=768, use_temporal_attention=True,
    use_temporal_resblock=True, extra_ff_mix_layer=True, use_spatial_context=True, merge_factor=0.0,
    merge_strategy="learned_with_images", video_kernel_size=[3, 1, 1], disable_temporal_crossattention=False,
)  # fmt: skip
HUNYUAN_VIDEO: Config = base.HUNYUAN | dict(
    in_channels=16, out_channels=16, patch_size=[1, 2, 2], hidden_size=3072, num_heads=24, depth=20, vec_in_dim=768,
    depth_single_blocks=40, context_in_dim=4096, byt5=False, use_cond_type_embedding=False, vision_in_dim=None,
    meanflow_sum=False, guidance_embed=True,
)  # fmt: skip
HUNYUAN_IMAGE: Config = HUNYUAN_VIDEO | dict(
    in_channels=64, out_channels=64, patch_size=[1, 1], hidden_size=3584, num_heads=28, vec_in_dim=None, byt5=True,
    context_in_dim=3584, axes_dim=[64, 64],
)  # fmt: skip
PIXART: Config = dict(
    num_heads=16, patch_size=2, hidden_size=1152, in_channels=4, depth=28, model_max_length=300, input_size=128,
    pe_interpolation=2, micro_condition=False,
)  # fmt: skip
COSMOS: Config = dict(
    max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
    model_channels=4096, block_config="FA-CA-MLP", concat_padding_mask=True, pos_emb_cls="rope3d", num_blocks=28,
    pos_emb_learnable=False, pos_emb_interpolation="crop", block_x_format="THWBD", affline_emb_norm=True, num_heads=32,
    use_adaln_lora=True, adaln_lora_dim=256, extra_per_block_abs_pos_emb=True, rope_h_extrapolation_ratio=1.0,
    rope_w_extrapolation_ratio=1.0, rope_t_extrapolation_ratio=2.0, extra_per_block_abs_pos_emb_type="learnable",
)  # fmt: skip
PREDICT2: Config = dict(
    max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
    model_channels=2048, num_blocks=28, num_heads=16, crossattn_emb_channels=1024, pos_emb_cls="rope3d",
    use_adaln_lora=True,
)  # fmt: skip
MOCHI: Config = dict(
    depth=48, patch_size=2, num_heads=24, hidden_size_x=3072, hidden_size_y=1536, mlp_ratio_x=4.0, mlp_ratio_y=4.0,
    learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0,
    attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=4096, t5_token_length=256,
    patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True, rope_theta=10000.0,
)  # fmt: skip
ACE: Config = dict(
    attention_head_dim=128, in_channels=8, inner_dim=2560, max_position=32768, mlp_ratio=2.5, num_attention_heads=20,
    num_layers=24, out_channels=8, patch_size=[16, 1], ssl_encoder_depths=[8, 8], ssl_latent_dims=[1024, 768],
    ssl_names=["mert", "m-hubert"], lyric_encoder_vocab_size=6693, lyric_hidden_size=1024,
)  # fmt: skip
OMNIGEN2: Config = dict(
    hidden_size=2520, num_layers=32, num_refiner_layers=2, num_attention_heads=21, num_kv_heads=7, text_feat_dim=2048,
)  # fmt: skip
STABLE_AUDIO: Config = dict(
    global_cond_dim=1536, project_cond_tokens=False, embed_dim=1536, depth=24, num_heads=24, io_channels=64,
    cond_token_dim=768, timestep_features_type="learned",
)  # fmt: skip
ZIMAGE_PIXEL: Config = base.ZIMAGE | dict(
    image_model="zimage_pixel", patch_size=32, in_channels=3, decoder_in_channels=3072, decoder_hidden_size=3840,
    decoder_num_res_blocks=4, decoder_max_freqs=8,
)  # fmt: skip
CPU: Config = {"device": "cpu"}  # for classes that read a tensor in their constructor
LDM = "comfy.ldm."

# name: (class, configuration, class of comfy.supported_models that ComfyUI must detect)
MODELS: dict[str, tuple[str, Config, str]] = {
    "sd15": (UNET_MODEL, SD15, "SD15"),
    "sd21": (UNET_MODEL, SD21, "SD20"),
    "svd": (UNET_MODEL, SVD, "SVD_img2vid"),
    "stable_cascade_c": (f"{LDM}cascade.stage_c:StageC", {"stable_cascade_stage": "c"}, "Stable_Cascade_C"),
    "stable_cascade_b": (f"{LDM}cascade.stage_b:StageB", {"stable_cascade_stage": "b"}, "Stable_Cascade_B"),
    "sd3_medium": (MMDIT_MODEL, base.SD35 | {"depth": 24, "qk_norm": None}, "SD3"),
    "auraflow": (f"{LDM}aura.mmdit:MMDiT", {"max_seq": 9216, "n_double_layers": 4, "n_layers": 36}, "AuraFlow"),
    "stable_audio": (f"{LDM}audio.dit:AudioDiffusionTransformer", STABLE_AUDIO, "StableAudio"),
    "hunyuan_dit": (f"{LDM}hydit.models:HunYuanDiT", dict(depth=40, hidden_size=1408, mlp_ratio=4.3637), "HunyuanDiT"),
    "pixart_alpha": (f"{LDM}pixart.pixartms:PixArtMS", PIXART | CPU | {"micro_condition": True}, "PixArtAlpha"),
    "pixart_sigma": (f"{LDM}pixart.pixartms:PixArtMS", PIXART | CPU, "PixArtSigma"),
    "longcat_image": (FLUX_MODEL, base.FLUX | {"vec_in_dim": None, "context_in_dim": 3584, "guidance_embed": False},
                      "LongCatImage"),
    "ovis_image": (FLUX_MODEL, base.FLUX | {"vec_in_dim": None, "context_in_dim": 2048, "guidance_embed": False,
                                       "yak_mlp": True, "txt_norm": True}, "FluxSchnell"),
    "lens": (f"{LDM}lens.model:LensTransformer2DModel", {}, "Lens"),
    "mochi": (f"{LDM}genmo.joint_model.asymm_models_joint:AsymmDiTJoint", MOCHI, "GenmoMochi"),
    "ltxv": (f"{LDM}lightricks.model:LTXVModel", {}, "LTXV"),
    "hunyuan_video": (HUNYUAN_MODEL, HUNYUAN_VIDEO, "HunyuanVideo"),
    "hunyuan_image21": (HUNYUAN_MODEL, HUNYUAN_IMAGE, "HunyuanImage21"),
    "cosmos": (f"{LDM}cosmos.model:GeneralDIT", COSMOS, "CosmosT2V"),
    "cosmos_predict2": (f"{LDM}cosmos.predict2:MiniTrainDIT", PREDICT2, "CosmosT2IPredict2"),
    "pid": (f"{LDM}pixeldit.pid:PidNet", {}, "PiD"),
    "wan_scail": (f"{LDM}wan.model:SCAILWanModel", base.WAN | {"model_type": "scail", "in_dim": 36}, "WAN21_SCAIL"),
    "wan_dancer": (f"{LDM}wan.model_wandancer:WanDancerModel", base.WAN | {"model_type": "wandancer", "in_dim": 36},
                   "WAN22_WanDancer"),
    "hunyuan3d": (f"{LDM}hunyuan3d.model:Hunyuan3Dv2", {}, "Hunyuan3Dv2"),
    "hunyuan3d21": (f"{LDM}hunyuan3dv2_1.hunyuandit:HunYuanDiTPlain", dict(in_channels=64, context_dim=1024,
                    hidden_size=2048, num_heads=16, depth=21, qkv_bias=False), "Hunyuan3Dv2_1"),
    "minimax_h3": (f"{LDM}minimax.model:MiniMaxH3Model", {}, "MiniMaxH3"),
    "minimax_music": (f"{LDM}minimax_music.dit:MiniMaxMusic3DiT", {}, "MiniMaxMusic3"),
    "triposplat": (f"{LDM}triposplat.model:LatentSeqMMFlowModel", {}, "TripoSplat"),
    "trellis2": (f"{LDM}trellis2.model:Trellis2", {"resolution": 64}, "Trellis2"),
    "seedvr2": (f"{LDM}seedvr.model:NaDiT", dict(vid_dim=2560, heads=20, num_layers=32, norm_eps=1e-5,
                mlp_type="swiglu", vid_out_norm=True), "SeedVR2"),
    "ace_step": (f"{LDM}ace.model:ACEStepTransformer2DModel", ACE, "ACEStep"),
    "ace_step15": (f"{LDM}ace.ace_step15:AceStepConditionGenerationModel", CPU, "ACEStep15"),
    "omnigen2": (f"{LDM}omnigen.omnigen2:OmniGen2Transformer2DModel", OMNIGEN2, "Omnigen2"),
    "boogu": (f"{LDM}boogu.model:BooguTransformer2DModel", {}, "Boogu"),
    "mage_flow": (f"{LDM}mage_flow.model:MageFlowTransformer2DModel", {}, "MageFlow"),
    "joyimage": (f"{LDM}joyimage.model:JoyImageTransformer3DModel", {}, "JoyImage"),
    "ideogram4": (f"{LDM}ideogram4.model:Ideogram4Transformer2DModel", {}, "Ideogram4"),
    "krea2": (f"{LDM}krea2.model:SingleStreamDiT", {}, "Krea2"),
    "kandinsky5": (f"{LDM}kandinsky5.model:Kandinsky5", {}, "Kandinsky5"),
    "ernie_image": (f"{LDM}ernie.model:ErnieImageModel", {}, "ErnieImage"),
    "cogvideox": (f"{LDM}cogvideo.model:CogVideoXTransformer3DModel", {}, "CogVideoX_T2V"),
    "zimage_pixel": (f"{LDM}lumina.model:NextDiTPixelSpace", ZIMAGE_PIXEL, "ZImagePixelSpace"),
    "depth_anything3": (f"{LDM}depth_anything_3.model:DepthAnything3Net", {}, "DepthAnything3"),
    "sam3": (f"{LDM}sam3.detector:SAM3Model", {"image_model": "SAM3"}, "SAM3"),
    "rt_detr": (f"{LDM}rt_detr.rtdetr_v4:RTv4", CPU, "RT_DETR_v4"),
}  # fmt: skip


def list_model(path: str, config: Config, expected: str) -> base.Tensors:
    import comfy.model_detection as detection
    import torch

    operations = base.mixed_precision_operations(False)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta", "operations": operations} | config
    with torch.device(options["device"]):
        tensors = base.list_tensors(base.load_class(path)(**options), operations)
    reads: set[str] = set()
    state = {name: base.ShapeProbe(name, shape, reads) for name, (shape, _) in tensors.items()}
    detected = detection.detect_unet_config(state, "")
    matched = type(detection.model_config_from_unet_config(detected, state)).__name__
    if matched != expected:
        raise SystemExit(f"ComfyUI detects {path} as {matched}, not {expected}")
    return base.flag_reads(tensors, reads)


def main(arguments: list[str]) -> None:
    comfy_path, *names = arguments
    sys.argv[1:] = ["--cpu"]
    sys.path.insert(0, comfy_path)
    import comfy.options
    import comfyui_version

    comfy.options.enable_args_parsing()

    OUT.mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        path, config, expected = MODELS[name]
        tensors = list_model(path, config, expected)
        lines = [f"# {expected} of ComfyUI {comfyui_version.__version__}: {path}", *base.format_lines(tensors)]
        (OUT / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(tensors)} tensors, {len(lines) - 1} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
