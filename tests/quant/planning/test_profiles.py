"""Profiles against the complete key and shape lists of real architectures, built by ComfyUI's own classes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from calibrated_rounding.quant.errors import ProfileError
from calibrated_rounding.quant.planning.profiles import Profile, get_profile, match, profile_names, recognise
from hypothesis import given
from hypothesis import strategies as st

_spec = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
assert _spec is not None and _spec.loader is not None
architectures = importlib.util.module_from_spec(_spec)
sys.modules["architectures"] = architectures
_spec.loader.exec_module(architectures)

# list: (its profile, the least share of its parameters that the profile quantizes)
EXPECTED = {
    "anima": ("anima", 0.88),
    "chroma": ("chroma", 0.96),
    "flux2_dev": ("flux2", 0.97),
    "flux2_klein_4b": ("flux2", 0.94),
    "flux2_klein_9b": ("flux2", 0.95),
    "flux_dev": ("flux", 0.99),
    "flux_schnell": ("flux", 0.99),
    "gemma2_2b": ("gemma", 0.77),  # 23 % is the token embedding
    "gemma3_12b": ("gemma", 0.88),
    "gemma3_4b": ("gemma", 0.74),
    "gemma4_12b": ("gemma", 0.91),
    "gemma4_e4b": ("gemma", 0.49),  # 44 % are embeddings, 6 % towers
    "hidream_i1": ("hidream", 0.96),
    "hidream_o1": ("hidream", 0.84),
    "hunyuan_video15": ("hunyuan_video15", 0.97),
    "hunyuan_video15_sr": ("hunyuan_video15", 0.97),
    "llama3_8b": ("llama", 0.92),
    "ltx23_22b": ("ltx2", 0.80),
    "ltx2_19b": ("ltx2", 0.86),
    "lumina2": ("lumina2", 0.89),
    "ministral3_3b": ("mistral", 0.88),
    "mistral3_24b": ("mistral", 0.97),
    "mistral3_24b_flux2": ("mistral", 0.96),
    "newbie": ("lumina2", 0.89),
    "qwen25_3b": ("qwen", 0.89),
    "qwen25_vl_7b": ("qwen", 0.84),
    "qwen35_27b": ("qwen", 0.88),
    "qwen35_4b": ("qwen", 0.78),
    "qwen3_06b": ("qwen", 0.73),
    "qwen3_2b": ("qwen", 0.81),
    "qwen3_4b": ("qwen", 0.90),
    "qwen3_8b": ("qwen", 0.84),
    "qwen3_vl_4b": ("qwen", 0.81),
    "qwen3_vl_8b": ("qwen", 0.79),
    "qwen_image": ("qwen_image", 0.99),
    "qwen_image_layered": ("qwen_image", 0.99),
    "radiance": ("radiance", 0.90),
    "radiance_linear": ("radiance", 0.90),
    "sd35_large": ("sd35", 0.98),
    "sd35_medium": ("sd35", 0.89),
    "sdxl_base": ("sdxl", 0.84),
    "sdxl_refiner": ("sdxl", 0.60),  # a third are convolutions
    "t5xxl": ("t5xxl", 0.96),
    "t5xxl_old": ("t5xxl", 0.98),
    "t5xxl_with_decoder": ("t5xxl", 0.93),
    "umt5xxl": ("umt5xxl", 0.80),
    "umt5xxl_with_decoder": ("umt5xxl", 0.68),  # both copies of the token embedding
    "wan22_5b": ("wan", 0.97),
    "wan22_animate_14b": ("wan", 0.93),
    "wan22_s2v_14b": ("wan", 0.85),
    "wan_camera_14b": ("wan", 0.95),
    "wan_flf2v_14b": ("wan", 0.98),
    "wan_fun_control_14b": ("wan", 0.98),
    "wan_humo_17b": ("wan", 0.97),
    "wan_i2v_14b": ("wan", 0.98),
    "wan_t2v_14b": ("wan", 0.97),
    "wan_t2v_1_3b": ("wan", 0.97),
    "wan_vace_14b": ("wan", 0.98),
    "zimage": ("zimage", 0.93),
    "zimage_omni": ("zimage", 0.93),
}
UNSUPPORTED = ["clip_l", "t5_base", "t5_xl"]
"""Text encoders of which ComfyUI loads no quantized layers."""
FAMILY = {name: family for name, (family, _) in EXPECTED.items()}
CASES = [(name, variant) for name, family in FAMILY.items() for variant in get_profile(family).variants]


def quantized(profile: Profile, name: str, embeddings: bool = False) -> set[str]:
    """The keys that a profile quantizes: the plan's structural rules (a 2-D ``.weight``) with the profile's own."""
    return {
        key
        for key, tensor in architectures.architecture(name).items()
        if key.endswith(".weight") and len(tensor.shape) == 2 and not profile.removes(key)
        if profile.decide(key.removesuffix(".weight"), tensor.shape, embeddings=embeddings).action == "quantize"
    }


def test_every_list_is_expected() -> None:
    assert architectures.names() == sorted([*EXPECTED, *UNSUPPORTED])


PREFIXES = {
    "diffusion": ["", "model.diffusion_model.", "diffusion_model.", "net."],
    "text_encoder": ["", "text_encoders.some.transformer.", "cond_stage_model."],
}


@pytest.mark.parametrize(
    ("name", "prefix"), [(name, prefix) for name in EXPECTED for prefix in PREFIXES[get_profile(FAMILY[name]).kind]]
)
def test_recognised_with_and_without_prefix(name: str, prefix: str) -> None:
    found = recognise(architectures.shapes(name, prefix))
    assert (found.profile.name, found.prefix, found.certain) == (FAMILY[name], prefix, True)


@pytest.mark.parametrize("name", [name for name in EXPECTED if FAMILY[name] != "mistral"])
def test_recognised_at_any_size(name: str) -> None:
    small = {key: tuple(min(size, 8) for size in shape) for key, shape in architectures.shapes(name).items()}
    assert recognise(small).profile.name == FAMILY[name]


def test_tiny_wan_is_wan() -> None:
    whole = architectures.shapes("wan_t2v_1_3b")
    one_block = {key: shape for key, shape in whole.items() if not key.startswith("blocks.") or ".0." in key[:9]}
    assert recognise(one_block).profile.name == "wan"


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_only_loadable_layers_are_quantized(name: str, variant: str) -> None:
    tensors = architectures.architecture(name)
    chosen = quantized(get_profile(variant), name)
    assert [key for key in chosen if not tensors[key].linear] == []
    assert [key for key in chosen if tensors[key].read or tensors[key].embedding] == []
    assert [key for key in chosen if "norm" in key.rsplit(".", 2)[-2]] == []


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_overrides_never_reach_required_rules(name: str, variant: str) -> None:
    profile = get_profile(variant)
    weights = {key: tensor for key, tensor in architectures.architecture(name).items() if key.endswith(".weight")}
    delicate = {
        key: tensor.shape
        for key, tensor in weights.items()
        if len(tensor.shape) == 2 and (tensor.read or not (tensor.linear or tensor.embedding))
    }
    for key, shape in delicate.items():
        assert profile.removes(key) or profile.decide(key.removesuffix(".weight"), shape).required, key


@pytest.mark.parametrize("name", EXPECTED)
def test_embeddings_on_request_and_nothing_else(name: str) -> None:
    profile = get_profile(FAMILY[name])
    extra = quantized(profile, name, embeddings=True) - quantized(profile, name)
    tensors = architectures.architecture(name)
    assert [key for key in extra if not tensors[key].embedding or tensors[key].read] == []
    tables = [
        key for key in tensors if key.endswith((".embed_tokens.weight", "shared.weight")) and tensors[key].embedding
    ]
    assert set(tables) <= extra


@pytest.mark.parametrize(("name", "floor"), [(name, floor) for name, (_, floor) in EXPECTED.items()])
def test_share_of_the_parameters(name: str, floor: float) -> None:
    profile = get_profile(FAMILY[name])
    tensors = architectures.architecture(name)
    total = sum(tensor.size for key, tensor in tensors.items() if not profile.removes(key))
    share = sum(tensors[key].size for key in quantized(profile, name)) / total
    assert floor <= share <= floor + 0.02


@pytest.mark.parametrize("variant", profile_names())
def test_no_dead_rule(variant: str) -> None:
    profile = get_profile(variant)
    names = [name for name in EXPECTED if FAMILY[name] == profile.family]
    if variant == "generic":
        names = [*EXPECTED, *architectures.known_names()]
    keys = {key for name in names for key in architectures.architecture(name)}
    everything = {key for name in EXPECTED for key in architectures.architecture(name)}
    shared = get_profile("llama").rules
    for rule in profile.rules:
        pool = everything if rule in shared else keys
        assert any(rule.matches(key if rule.action == "remove" else key.removesuffix(".weight")) for key in pool), rule


@pytest.mark.parametrize("variant", profile_names())
def test_every_rule_says_why_and_who(variant: str) -> None:
    profile = get_profile(variant)
    assert profile.title
    for rule in profile.rules:
        assert not rule.required or rule.action == "keep"
        assert len(rule.reason) > 20 and rule.source and rule.action in ("keep", "remove", "quantize")
        assert set(rule.only) <= set(profile.variants)


@pytest.mark.parametrize(
    ("smaller_set", "larger_set", "name", "differing"),
    [
        ("chroma_small", "chroma", "chroma", {"final_layer.linear.weight"}),
        ("nerf_small", "radiance", "radiance_linear", {"nerf_final_layer.linear.weight"}),
        ("radiance", "nerf_large", "radiance", {"_attn.proj.weight"}),
        (
            "zimage_small",
            "zimage",
            "zimage",
            {"adaLN_modulation.0.weight", "29.attention.qkv.weight", "out.weight", "w3.weight"},
        ),
        ("zimage", "zimage_refiner", "zimage", {"qkv.weight", "w1.weight", "w2.weight"}),
    ],
)
def test_variants_differ_as_stated(smaller_set: str, larger_set: str, name: str, differing: set[str]) -> None:
    only_small = quantized(get_profile(smaller_set), name) - quantized(get_profile(larger_set), name)
    assert quantized(get_profile(larger_set), name) < quantized(get_profile(smaller_set), name)
    assert all(any(key.endswith(ending) for ending in differing) for key in only_small)
    assert all(any(key.endswith(ending) for key in only_small) for ending in differing)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_named_profile_of_the_family_is_taken(name: str, variant: str) -> None:
    found = match(variant, architectures.shapes(name, "a.b."))
    assert (found.profile.name, found.prefix) == (variant, "a.b.")


@pytest.mark.parametrize("name", EXPECTED)
def test_wrong_profile_names_matching_one(name: str) -> None:
    wrong = "flux" if FAMILY[name] != "flux" else "wan"
    with pytest.raises(ProfileError, match=f"'{wrong}'.*'{FAMILY[name]}'"):
        match(wrong, architectures.shapes(name))


def test_profile_for_unknown_model_names_generic() -> None:
    with pytest.raises(ProfileError, match=r"'flux'.*'generic'"):
        match("flux", {"something.else.weight": (4, 4)})


def test_unknown_profile_names_closest() -> None:
    with pytest.raises(ProfileError, match=r"'zimagee'.*'zimage'.*flux2"):
        get_profile("zimagee")


def test_generic_takes_any_model() -> None:
    found = match("generic", architectures.shapes("flux_dev", "model.diffusion_model."))
    assert (found.profile.name, found.prefix) == ("generic", "model.diffusion_model.")


@pytest.mark.parametrize("name", [name for name in EXPECTED if get_profile(FAMILY[name]).kind == "diffusion"])
def test_generic_would_do_for_a_diffusion_model(name: str) -> None:
    tensors = architectures.architecture(name)
    chosen = quantized(get_profile("generic"), name)
    assert all(tensors[key].linear for key in chosen)
    assert sum(tensors[key].size for key in chosen) >= EXPECTED[name][1] * sum(
        tensor.size for tensor in tensors.values()
    )


def test_unknown_models_are_generic_and_uncertain() -> None:
    found = recognise({"blocks.0.linear.weight": (64, 64)})
    assert (found.profile.name, found.prefix, found.certain) == ("generic", "", False)
    assert found.profile.decide("blocks.0.linear", (64, 64)).action == "quantize"
    assert found.profile.decide("final_layer.linear", (64, 64)).action == "keep"


def test_diffusion_model_of_checkpoint_is_used() -> None:
    whole = architectures.shapes("sd35_medium", "model.diffusion_model.")
    whole |= architectures.shapes("t5xxl", "text_encoders.t5xxl.transformer.")
    whole |= architectures.shapes("clip_l", "text_encoders.clip_l.transformer.")
    whole |= {"first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}
    assert (recognise(whole).profile.name, recognise(whole).prefix) == ("sd35", "model.diffusion_model.")
    named = match("t5xxl", whole)
    assert (named.profile.name, named.prefix) == ("t5xxl", "text_encoders.t5xxl.transformer.")


def test_unknown_diffusion_model_is_no_encoder() -> None:
    whole = {"model.diffusion_model.strange.weight": (64, 64)}
    whole |= architectures.shapes("t5xxl", "text_encoders.t5xxl.transformer.")
    found = recognise(whole)
    assert (found.profile.name, found.prefix, found.certain) == ("generic", "model.diffusion_model.", False)


def test_t5_decoder_alone_is_removed() -> None:
    for name in ("t5xxl_with_decoder", "umt5xxl_with_decoder"):
        profile = get_profile(FAMILY[name])
        removed = {key for key in architectures.architecture(name) if profile.removes(key)}
        assert removed == {key for key in architectures.architecture(name) if key.startswith(("decoder.", "lm_head."))}


def test_the_tokenizer_tells_a_mistral_of_any_size() -> None:
    small = {key: tuple(min(size, 8) for size in shape) for key, shape in architectures.shapes("mistral3_24b").items()}
    assert recognise(small).profile.name == "llama"
    assert recognise(small | {"tekken_model": (100,)}).profile.name == "mistral"


def test_qwen35_with_comfyui_names_is_recognised() -> None:
    renamed = {
        key.replace("model.language_model.", "model."): shape
        for key, shape in architectures.shapes("qwen35_4b").items()
    }
    assert recognise(renamed).profile.name == "qwen"


KEYS = st.sampled_from(sorted({key for name in EXPECTED for key in list(architectures.architecture(name))[::40]}))
NAMES = st.one_of(st.text(max_size=30), KEYS, KEYS.map("model.diffusion_model.".__add__))
SHAPES = st.lists(st.integers(0, 1 << 20), max_size=5).map(tuple)


@given(st.dictionaries(NAMES, SHAPES, max_size=30))
def test_recognise_never_raises(shapes: dict[str, tuple[int, ...]]) -> None:
    found = recognise(shapes)
    assert found.profile.name in profile_names()
    assert not found.prefix or any(key.startswith(found.prefix) for key in shapes)


@given(st.sampled_from(profile_names()), st.text(max_size=40), SHAPES, st.booleans())
def test_every_layer_gets_a_decision_with_a_reason(
    name: str, layer: str, shape: tuple[int, ...], embeddings: bool
) -> None:
    decision = get_profile(name).decide(layer, shape, embeddings=embeddings)
    assert decision.action in ("keep", "remove", "quantize") and decision.reason and decision.source
