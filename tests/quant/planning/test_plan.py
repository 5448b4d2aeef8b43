from __future__ import annotations

from typing import Any

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, ProfileError, Recipe
from calibrated_rounding.quant.files.tensors import Spec
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.quant.planning.builder import make_plan, quantize_kept
from calibrated_rounding.quant.planning.candidates import in_formats
from calibrated_rounding.quant.planning.plan import KeptTensor, LayerPlan, Plan
from hypothesis import given
from hypothesis import strategies as st

BF16 = torch.bfloat16


def specs(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = BF16) -> dict[str, Spec]:
    return {name: Spec(dtype, shape) for name, shape in shapes.items()}


def plan_of(recipe: Recipe, **shapes: tuple[int, ...]) -> Plan:
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return make_plan(specs({"ballast.weight": (512, 512), **named}), recipe)


NAMES = st.text("abcdnorm.embd", min_size=1, max_size=12).map(lambda text: text + ".weight") | st.text(
    "xyz.", min_size=1
)
SHAPES = st.lists(st.integers(0, 300), max_size=4).map(tuple)


@given(shapes=st.dictionaries(NAMES, SHAPES, max_size=8), heuristics=st.booleans(), embeddings=st.booleans())
def test_every_tensor_is_planned_once(shapes: dict[str, tuple[int, ...]], heuristics: bool, embeddings: bool) -> None:
    tensors = specs({"ballast.weight": (512, 512), **shapes})
    for name in ("float8_e4m3fn", "int8_row", "int8_convrot", "mxfp8", "int8_blockwise"):
        plan = make_plan(tensors, Recipe(format=name, heuristics=heuristics, embeddings=embeddings))
        assert sorted([*plan.layers, *plan.kept, *plan.removed]) == sorted(tensors)
        for key, layer in plan.layers.items():
            assert len(tensors[key].shape) == 2
            assert layer.format.takes(layer.shape)
            assert layer.group is None or layer.shape[1] % layer.group == 0


def test_layer_names_and_layout() -> None:
    plan = plan_of(Recipe(format="int8_row"), a__q__weight=(64, 32), a__q__bias=(64,))
    assert plan.layout["a.q.weight"] == (torch.int8, (64, 32))
    assert plan.layout["a.q.weight_scale"] == (torch.float32, (64, 1))
    assert plan.layout["a.q.bias"] == (BF16, (64,))
    assert plan.layout["a.q.comfy_quant"][0] == torch.uint8
    assert plan.markers["a.q"].to_json() == {"format": "int8_tensorwise"}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8,), BF16), ((8, 8, 3, 3), BF16), ((2, 8, 8), BF16), ((8, 8), torch.int64), ((8, 0), BF16)],
)
def test_structural_tensors_are_never_quantized(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = specs({"ballast.weight": (512, 512)}) | {"odd.weight": Spec(dtype, shape)}
    plan = make_plan(tensors, Recipe(overrides=(("odd", "int8_row"),)))
    assert "odd.weight" in plan.kept


def test_norms_are_never_quantized() -> None:
    plan = plan_of(Recipe(overrides=(("norm", "int8_row"),)), norm1__weight=(64, 64))
    assert "norm1.weight" in plan.kept


def test_generic_rules_keep_tensors_comfyui_reads(digits: dict[str, torch.Tensor]) -> None:
    tensors = {name: Spec(t.dtype, tuple(t.shape)) for name, t in digits.items()}
    plan = make_plan(tensors, Recipe(profile="generic", overrides=(("ffn", "int8_row"),)))
    assert plan.profile == "generic"
    assert "time_projection.1.weight" in plan.layers
    assert {"blocks.0.ffn.0.weight", "head.head.weight"} <= set(plan.kept)


def test_overrides_exclude_and_their_order() -> None:
    recipe = Recipe(
        format="int8_row",
        overrides=(("first", "bfloat16"), ("^second$", "mxfp8"), ("second", "float16")),
        exclude=("third",),
    )
    plan = plan_of(
        recipe, first__weight=(64, 64), second__weight=(64, 64), third__weight=(64, 64), second2__weight=(64, 64)
    )
    assert plan.kept["first.weight"].dtype == BF16
    assert plan.layers["second.weight"].format.name == "mxfp8"
    assert plan.kept["second2.weight"].dtype == torch.float16
    assert plan.kept["third.weight"].reason == "excluded by the recipe"


def test_indivisible_shapes_are_padded_or_kept() -> None:
    shapes = {"odd__weight": (33, 50), "narrow__weight": (64, 48)}
    padded = plan_of(Recipe(format="mxfp8"), **shapes).layers["odd.weight"]
    assert padded.layout["odd.weight"][1] == (64, 64)
    assert padded.notes == (notice("padded", rows=64, columns=64),)
    rotated = plan_of(Recipe(format="int8_convrot"), **shapes)
    assert rotated.layers["narrow.weight"].group == 16
    assert rotated.layers["narrow.weight"].notes == (notice("smaller_rotation", group=16, inputs=48, limit=256),)
    assert rotated.markers["narrow"].to_json() == {
        "format": "int8_tensorwise",
        "convrot": True,
        "convrot_groupsize": 16,
    }
    assert "does not divide" in rotated.kept["odd.weight"].reason
    fallen = plan_of(Recipe(format="float8_e4m3fn", fallback="mxfp8"), **shapes).layers["odd.weight"]
    assert fallen.format.name == "mxfp8"
    assert [note.kind for note in fallen.notes] == ["format_fallback", "shape_misfit", "padded"]
    cast = plan_of(Recipe(format="float8_e4m3fn", fallback="float16"), **shapes).kept["odd.weight"]
    assert cast.dtype == torch.float16


@pytest.mark.parametrize(("name", "size"), [("int8_blockwise", 128), ("int8_blockwise_64", 64)])
def test_blocks_are_never_cut(name: str, size: int) -> None:
    shapes = {"whole__weight": (3 * size, size), "tall__weight": (size + 8, size), "wide__weight": (size, size + 8)}
    plan = plan_of(Recipe(format=name), **shapes)
    assert plan.layout["whole.weight_scale"] == (torch.float32, (3, 1))
    assert plan.markers["whole"].to_json() == {"format": "int8_blockwise", "group_size": size}
    assert f"divide by {size} x {size}" in plan.kept["tall.weight"].reason
    fallen = plan_of(Recipe(format=name, fallback="int8_row"), **shapes)
    assert {fallen.layers[key].format.name for key in ("tall.weight", "wide.weight")} == {"int8_row"}


def test_block_formats_reject_embeddings() -> None:
    shapes = {"model__embed_tokens__weight": (256, 128)}
    kept = plan_of(Recipe(format="int8_blockwise", embeddings=True), **shapes).kept["model.embed_tokens.weight"]
    assert kept.reason == "ComfyUI cannot look up embedding rows in int8_blockwise"
    asked = Recipe(format="int8_row", overrides=(("embed_tokens", "mxfp8"),))
    assert "mxfp8" in plan_of(asked, **shapes).kept["model.embed_tokens.weight"].reason
    fallen = plan_of(Recipe(format="int8_blockwise", embeddings=True, fallback="int8_row"), **shapes)
    assert fallen.layers["model.embed_tokens.weight"].format.name == "int8_row"
    assert "ballast.weight" in fallen.layers


@pytest.mark.parametrize("fallback", ["int8_row", "source"])
def test_auto_never_puts_embeddings_in_blocks(fallback: str) -> None:
    """An embedding that the first format cannot hold stays one, whatever becomes of it next."""
    recipe = Recipe(
        format="auto",
        formats=("int8_blockwise", "mxfp8", "int8_row"),
        embeddings=True,
        fallback=fallback,
        target_gb=1.0,
    )
    entry = plan_of(recipe, model__embed_tokens__weight=(256, 128)).entries["model.embed_tokens.weight"]
    layer = quantize_kept(entry, recipe) if isinstance(entry, KeptTensor) else entry
    assert isinstance(layer, LayerPlan) and not layer.fixed
    assert [plan.format.name for plan in in_formats(layer, recipe.formats, recipe)] == ["int8_row"]


def test_unrotatable_layer_is_plain_rows() -> None:
    plan = plan_of(Recipe(format="int8_convrot"), odd__weight=(64, 40))
    assert plan.layers["odd.weight"].group is None
    assert plan.markers["odd"].to_json() == {"format": "int8_tensorwise"}
    assert plan.layers["odd.weight"].notes == (notice("not_rotated", inputs=40, smallest=16),)


def test_heuristics_keep_layers_without_gain() -> None:
    plan = plan_of(Recipe(heuristics=True), small__weight=(64, 512), odd__weight=(520, 512), fine__weight=(256, 256))
    assert set(plan.layers) == {"ballast.weight", "fine.weight"}
    assert "below 256" in plan.kept["small.weight"].reason
    assert "divide by 16" in plan.kept["odd.weight"].reason


def test_keep_dtype_casts_floats_only() -> None:
    tensors = specs({"ballast.weight": (512, 512)}) | {
        "a.bias": Spec(torch.float32, (4,)),
        "n": Spec(torch.int64, (1,)),
    }
    plan = make_plan(tensors, Recipe(keep_dtype="bfloat16"))
    assert plan.kept["a.bias"].dtype == BF16
    assert plan.kept["n"].dtype == torch.int64


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(ProfileError, match="nothing to quantize"):
        make_plan(specs({"norm.weight": (8,)}), Recipe())


@pytest.mark.parametrize(
    ("shape", "settings", "words"),
    [
        ((64, 64), {"exclude": (".",)}, "the settings exclude and overrides keep 2 of 2 layers"),
        ((64, 64), {"heuristics": True}, "the setting heuristics keeps 2 of 2 layers"),
        ((64, 63), {"format": "int8_blockwise"}, "int8_blockwise cannot take 2 of 2 layers"),
    ],
)
def test_no_layer_left_names_the_setting(shape: tuple[int, int], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError, match=f"No layer would be quantized: {words}"):
        make_plan(specs({"a.weight": shape, "b.weight": shape}), Recipe(**settings))


def test_unmatched_patterns_are_noted() -> None:
    recipe = Recipe(exclude=("^a$", "nothing"), overrides=(("b", "mxfp8"), ("norm", "bfloat16")))
    plan = make_plan(specs({"a.weight": (64, 64), "b.weight": (64, 64), "norm.weight": (64,)}), recipe)
    assert plan.warnings == (
        notice("pattern_unmatched", setting="exclude", pattern="nothing"),
        notice("pattern_unmatched", setting="overrides", pattern="norm"),
    )


def test_e5m2_is_always_marked_full_precision() -> None:
    plan = plan_of(Recipe(format="float8_e5m2", overrides=(("other", "float8_e4m3fn"),)), other__weight=(64, 64))
    flags = {name: marker.full_precision_matrix_mult for name, marker in plan.markers.items()}
    assert flags == {"ballast": True, "other": None}


def test_full_precision_is_in_the_marker() -> None:
    plan = plan_of(Recipe(format="fp8", full_precision_matrix_mult=True))
    assert plan.markers["ballast"].full_precision_matrix_mult is True


@pytest.mark.parametrize("fmt", ["fp8", "nvfp4"])
def test_input_scale_only_where_measured_and_taken(fmt: str) -> None:
    tensors = specs({"a.weight": (64, 64), "b.weight": (64, 64)})
    plan = make_plan(tensors, Recipe(format=fmt, input_scale="absmax"), {"a": InputStatistics(absmax=1.0)})
    assert "a.input_scale" in plan.layout
    assert "b.input_scale" not in plan.layout
    assert (
        "a.input_scale"
        not in make_plan(
            tensors, Recipe(format="int8_row", input_scale="absmax"), {"a": InputStatistics(absmax=1.0)}
        ).layout
    )


@pytest.mark.parametrize("fmt", ["int8_convrot", "w6a8", "w4a8", "nvfp4"])
def test_banks_of_experts_are_kept_by_name(fmt: str) -> None:
    tensors = {"experts.up.weight": Spec(torch.bfloat16, (8, 64, 64)), "l.weight": Spec(torch.bfloat16, (64, 64))}
    plan = make_plan(tensors, Recipe(format=fmt, profile="generic", heuristics=False))
    assert plan.kept["experts.up.weight"].reason == "a bank of 8 experts, which is not quantized"
