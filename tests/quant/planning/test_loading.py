"""What ComfyUI's loaders would make of a file's names, for real models' lists and for members of every foreign kind."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Recipe, UnloadableError, plan_file, quantize_file, quantize_state_dict
from calibrated_rounding.quant.planning.file_kinds import foreign_kinds, known_models
from calibrated_rounding.quant.planning.loading import ask
from calibrated_rounding.quant.planning.names import Names, loader_prefix
from calibrated_rounding.quant.planning.profiles import recognise
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tests.quant.planning import architectures
from calibrated_rounding.tests.quant.planning.foreign_members import MEMBERS, expand
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]

UNSUPPORTED = {"clip_l", "t5_base", "t5_xl"}
LOADED = [*architectures.known_names(), *(name for name in architectures.names() if name not in UNSUPPORTED)]
_FAMILIES = ("gemma", "llama", "minis", "mistral", "qwen2", "qwen3", "t5", "umt5")
ENCODERS = [name for name in LOADED if name.startswith(_FAMILIES)]
DIFFUSION = [name for name in LOADED if name not in ENCODERS]

STRIPPED = ["model.diffusion_model.", "model.model.", "net.", "model."]
KEPT = [
    "diffusion_model.", "transformer.", "_orig_mod.", "module.", "pipe.dit.", "ema.", "state_dict.",
    "model.diffusion_model._orig_mod.", "model.transformer.", "net.module.",
]  # fmt: skip

KINDS = [(kind, member) for kind, members in MEMBERS.items() for member in members]


def refusal(shapes: Shapes, path: Path | None = None) -> str:
    """The obstacle's sentence; empty: there is none."""
    return str(ask(shapes, path).obstacle or "")


@pytest.mark.parametrize("name", LOADED)
def test_every_real_model_is_accepted(name: str) -> None:
    answer = ask(architectures.shapes(name))
    assert answer.obstacle is None
    assert answer.known is not None
    assert (answer.known.kind == "text_encoder") == (name in ENCODERS)


@pytest.mark.parametrize("prefix", STRIPPED)
@pytest.mark.parametrize("name", DIFFUSION)
def test_stripped_prefixes_are_accepted(name: str, prefix: str) -> None:
    assert refusal(architectures.shapes(name, prefix)) == ""


@pytest.mark.parametrize("prefix", KEPT)
@pytest.mark.parametrize("name", DIFFUSION)
def test_other_prefixes_are_refused(name: str, prefix: str) -> None:
    assert prefix in refusal(architectures.shapes(name, prefix))


@pytest.mark.parametrize("prefix", [*STRIPPED, "text_encoders.t5xxl.transformer.", "transformer.", "module."])
@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoders_are_refused_under_any_prefix(name: str, prefix: str) -> None:
    assert prefix in refusal(architectures.shapes(name, prefix))


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_other_text_encoders_are_refused(name: str) -> None:
    assert "text encoder" in refusal(architectures.shapes(name))


@pytest.mark.parametrize(("kind", "member"), KINDS)
def test_members_of_foreign_kinds_are_refused(kind: str, member: str) -> None:
    text = refusal(expand(MEMBERS[kind][member]))
    assert text.startswith(f"This is {kind}: ")
    assert text.endswith(".") and ". " not in text.removeprefix(f"This is {kind}")


DIFFUSERS: dict[str, list[str]] = json.loads((architectures.DATA / "diffusers.json").read_text(encoding="utf-8"))
"""Generalized names of the models of diffusers 0.42.1, as tools/diffusers_names.py wrote them."""
OWN_NAMES = {
    "ErnieImageTransformer2DModel",
    "JoyImageEditPlusTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
}
"""Models of which ComfyUI and diffusers have the same names."""
UNTOLD = {
    "Kandinsky6SRTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "LongCatAudioDiTTransformer",
    "PRXTransformer2DModel",
    "T5FilmDecoder",
    "UVit2DModel",
}
"""Models that nothing but the name of diffusers' file tells."""


def numbered(general: str) -> list[str]:
    """The names with 0 and 1 for each ``#``."""
    head, *rest = general.split("#")
    choices = product("01", repeat=len(rest))
    return [head + "".join(map("".join, zip(numbers, rest, strict=True))) for numbers in choices]


@pytest.mark.parametrize("model", DIFFUSERS)
def test_diffusers_models_are_recognised(model: str) -> None:
    shapes = {name: (64, 64) for general in DIFFUSERS[model] for name in numbered(general)}
    assert bool(refusal(shapes)) == (model not in OWN_NAMES | UNTOLD)
    in_its_file = refusal(shapes, Path("diffusion_pytorch_model.safetensors"))
    assert bool(in_its_file) == (model not in OWN_NAMES)


def test_every_foreign_kind_has_members() -> None:
    assert [kind.obstacle.title for kind in foreign_kinds()] == list(MEMBERS)


@pytest.mark.parametrize(("kind", "member"), KINDS)
def test_other_models_in_a_checkpoint_do_not_matter(kind: str, member: str) -> None:
    checkpoint = architectures.shapes("sdxl_base", "model.diffusion_model.")
    assert refusal(checkpoint | expand(MEMBERS[kind][member])) == ""


def test_adapters_inside_the_model_are_refused() -> None:
    shapes = architectures.shapes("wan_t2v_1_3b", "model.diffusion_model.")
    shapes["model.diffusion_model.blocks.0.self_attn.q.lora_A.weight"] = (8, 64)
    assert "LoRA" in refusal(shapes)


# Parts of models ------------------------------------------------------------------------------------------------------

BLOCKS = re.compile(r"(^|\.)(\w*blocks?|\w*layers?)\.(block)?(\d+)\.")
EMBEDDERS = re.compile(
    r"(^|\.)(\w*emb|\w*embed\w*|\w+_in|first|patchify_proj|input_blocks\.0|shared|input_\w+|latent_conditioners"
    r"|\w*patch_proj)(\.|$)"
)
SEVERAL = {"pid", "rt_detr", "sam3", "depth_anything3", "trellis2", "hidream_o1"}
"""Models of several networks, or told by their embedders alone."""


def by_block(name: str) -> list[tuple[bool, int, str]]:
    """Sorts block 10 behind block 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


@pytest.mark.parametrize("name", [name for name in LOADED if name not in SEVERAL])
def test_missing_first_block_is_refused(name: str) -> None:
    shapes = architectures.shapes(name)
    rest = {key: shape for key, shape in shapes.items() if not ((found := BLOCKS.search(key)) and found[4] == "0")}
    assert "lacks" in refusal(rest)


@pytest.mark.parametrize("name", [name for name in LOADED if name not in SEVERAL])
def test_missing_embedders_are_refused(name: str) -> None:
    shapes = architectures.shapes(name)
    rest = {key: shape for key, shape in shapes.items() if BLOCKS.search(key) or not EMBEDDERS.search(key)}
    assert len(rest) < len(shapes)
    assert "lacks" in refusal(rest)


@pytest.mark.parametrize("name", [name for name in LOADED if name not in SEVERAL])
def test_the_second_half_of_a_model_is_refused(name: str) -> None:
    shapes = architectures.shapes(name)
    ordered = sorted(shapes, key=by_block)
    assert refusal({key: shapes[key] for key in ordered[len(ordered) // 2 :]})


@pytest.mark.parametrize("name", [name for name in LOADED if name != "stable_cascade_c"])  # two blocks a stage
def test_a_model_with_a_missing_block_is_refused(name: str) -> None:
    shapes = architectures.shapes(name)
    numbered = [(key, key[: found.end(2)], found[4]) for key in shapes if (found := BLOCKS.search(key))]
    groups = {group for _, group, number in numbered if number == "2"}
    gap = {key for key, group, number in numbered if number == "1" and group in groups}
    assert gap
    assert "lacks" in refusal({key: shape for key, shape in shapes.items() if key not in gap})


@pytest.mark.parametrize("name", [
    "model-00001-of-00003.safetensors",
    "diffusion_pytorch_model-00002-of-00002.safetensors",
    "model_1_of_2.safetensors",
    "wan part1of2.safetensors",
])  # fmt: skip
def test_shard_name_is_refused(name: str) -> None:
    assert "shards" in refusal(architectures.shapes("wan_t2v_1_3b"), Path(name))


def test_unknown_diffusers_model_is_refused() -> None:
    assert "diffusers" in refusal({"strange.linear.weight": (64, 64)}, Path("diffusion_pytorch_model.safetensors"))
    assert refusal({"strange.linear.weight": (64, 64)}, Path("strange.safetensors")) == ""
    # WAN's authors use the name, too.
    assert refusal(architectures.shapes("wan_t2v_1_3b"), Path("diffusion_pytorch_model.safetensors")) == ""


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "best of wan.safetensors", "10of20.safetensors"])
def test_similar_name_of_whole_file_is_accepted(name: str) -> None:
    assert refusal(architectures.shapes("wan_t2v_1_3b"), Path(name)) == ""


def test_shard_beside_index_is_refused(digits: Tensors, tmp_path: Path) -> None:
    names = sorted(digits)
    shards = {"first.safetensors": names[:20], "second.safetensors": names[20:]}
    for shard, keys in shards.items():
        save_file({key: digits[key] for key in keys}, tmp_path / shard)
    index = tmp_path / "whole.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}))
    with pytest.raises(UnloadableError, match=r"one of the 2 shards of whole\.safetensors\.index\.json"):
        quantize_file(tmp_path / "second.safetensors", tmp_path / "q.safetensors")
    assert quantize_file(index, tmp_path / "q.safetensors").layers
    assert inspect_file(tmp_path / "q.safetensors").obstacles == []


def test_damaged_index_beside_model_is_ignored(digits_path: Path, tmp_path: Path) -> None:
    (tmp_path / "other.safetensors.index.json").write_text("{")
    source = tmp_path / "model.safetensors"
    source.write_bytes(digits_path.read_bytes())
    assert plan_file(source).warnings == ()


# The paths that ask ---------------------------------------------------------------------------------------------------

UNKNOWN = {"strange.blocks.0.linear.weight": torch.ones(64, 64), "strange.head.weight": torch.ones(64, 64)}
LORA = {"blocks.0.q.lora_A.weight": torch.ones(64, 64), "blocks.0.q.lora_B.weight": torch.ones(64, 64)}


def test_an_unknown_model_is_quantized_with_a_warning() -> None:
    _, report = quantize_state_dict(UNKNOWN)
    assert report.layers
    assert {note.kind for note in report.notes} == {"not_known", "not_recognised"}


def test_a_known_model_has_no_warning(digits: Tensors) -> None:
    _, report = quantize_state_dict(digits)
    assert report.notes == []


def test_force_quantizes_with_a_warning() -> None:
    with pytest.raises(UnloadableError, match="This is a LoRA"):
        quantize_state_dict(LORA)
    tensors, report = quantize_state_dict(LORA, force=True)
    assert "blocks.0.q.lora_A.comfy_quant" in tensors
    assert next(note.values["reason"] for note in report.notes if note.kind == "forced").startswith("This is a LoRA")


def test_every_path_asks_the_same_question(tmp_path: Path) -> None:
    source, target = tmp_path / "lora.safetensors", tmp_path / "q.safetensors"
    save_file(LORA, source)
    for run in (lambda: plan_file(source), lambda: quantize_file(source, target), lambda: quantize_state_dict(LORA)):
        with pytest.raises(UnloadableError, match="This is a LoRA"):
            run()
    assert not target.exists()
    assert inspect_file(source).refusal.startswith("This is a LoRA")
    assert [warning.kind for warning in plan_file(source, force=True).warnings] == ["forced"]
    quantize_file(source, target, force=True)
    assert any("This is a LoRA" in obstacle for obstacle in inspect_file(target).obstacles)


def test_a_recipe_cannot_force() -> None:
    assert "force" not in Recipe().to_dict()


# Prefixes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "prefix"), [
    ([f"model.diffusion_model.{n}" for n in range(6)], "model.diffusion_model."),
    ([f"model.diffusion_model.{n}" for n in range(5)], "model."),
    ([f"model.model.{n}" for n in range(9)], "model.model."),
    ([f"net.{n}" for n in range(6)], "net."),
    ([f"net.{n}" for n in range(5)], ""),
    (["model.a", "b"], "model."),
    (["a", "b"], ""),
])  # fmt: skip
def test_the_prefix_that_comfyui_strips(names: list[str], prefix: str) -> None:
    assert loader_prefix(names) == prefix


def test_averaged_weights_beside_the_model_are_left_alone() -> None:
    shapes = architectures.shapes("wan_t2v_1_3b", "model.diffusion_model.")
    shapes |= architectures.shapes("wan_t2v_1_3b", "ema.")
    assert recognise(shapes).prefix == "model.diffusion_model."
    assert refusal(shapes) == ""


def test_a_stray_tensor_under_model_hides_the_rest() -> None:
    assert refusal(architectures.shapes("wan_t2v_1_3b") | {"model.stray": (1,)})


# The data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", architectures.known_names())
def test_generic_rules_quantize_only_comfyuis_linear_layers(name: str) -> None:
    profile = recognise(architectures.shapes(name)).profile
    for key, tensor in architectures.architecture(name).items():
        if key.endswith(".weight") and len(tensor.shape) == 2 and not tensor.linear:
            assert profile.decide(key.removesuffix(".weight"), tensor.shape).action == "keep", key


def test_partial_models_name_missing_tensors() -> None:
    assert all(any(not signature.rows for signature in model.whole) for model in known_models())


def test_hostile_names_are_not_searched_whole() -> None:
    many = {f"strange_{n}_encoder.decoder.weight": (1,) for n in range(20_000)}
    assert len(Names(many | {"encoder." * 50_000: (1,)}).text) < 500_000
    assert refusal(many | {"encoder." * 50_000: (1,)} | {"a." * 50_000: (1,)}) == ""


KEYS = st.sampled_from(sorted({key for name in LOADED for key in list(architectures.shapes(name))[::40]}))
FOREIGN = st.sampled_from([name for kind, member in KINDS for name in expand(MEMBERS[kind][member])])
NAMES = st.one_of(st.text(max_size=30), KEYS, FOREIGN, KEYS.map("model.".__add__), KEYS.map("a\nb.".__add__))
SIZES = st.lists(st.integers(0, 1 << 20), max_size=5).map(tuple)


@given(st.dictionaries(NAMES, SIZES, max_size=30))
def test_any_names_get_an_answer(shapes: Shapes) -> None:
    answer = ask(shapes)
    assert answer.obstacle is None or answer.known is None
    assert "\n" not in str(answer.obstacle)
