"""What a checkpoint is said to hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import VERSION, Recipe, quantize_file
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.marker import HEADER_KEY, Marker
from calibrated_rounding.quant.formats.stored import STORED_FORMATS
from calibrated_rounding.quant.reports.inspection import Entry, Inspection, inspect_file
from calibrated_rounding.quant.reports.provenance import PROVENANCE_KEY
from calibrated_rounding.tests.quant.files.quantized_layers import recognised
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def made(digits_path: Path, tmp_path: Path) -> Inspection:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format="int8_convrot", rotation_group=64))
    return inspect_file(tmp_path / "q.safetensors")


def look(tensors: Tensors, folder: Path, metadata: dict[str, str] | None = None) -> Inspection:
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata=metadata)
    return inspect_file(path)


def layer(fields: dict[str, object], **tensors: torch.Tensor) -> Tensors:
    """One layer called `l` with a marker."""
    own = {"weight": torch.zeros(16, 16, dtype=torch.int8), "weight_scale": torch.ones(16, 1)} | tensors
    return {f"l.{name}": tensor for name, tensor in own.items()} | {
        "l.comfy_quant": Marker.from_json(fields).to_tensor()
    }


def header(**layers: dict[str, object]) -> dict[str, str]:
    return {HEADER_KEY: json.dumps({"layers": layers})}


def test_every_byte_of_the_file_is_accounted_for(made: Inspection) -> None:
    size = Path(made.path).stat().st_size
    head = 8 + int.from_bytes(Path(made.path).read_bytes()[:8], "little")
    assert made.nbytes == size - head
    assert sum(row["bytes"] for row in made.totals().values()) == made.nbytes
    assert {name: row["count"] for name, row in made.totals().items()} == {"int8_tensorwise": 19, "bfloat16": 50}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_called_as_in_recipes(name: str, digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format=name), force=True)
    entries = inspect_file(tmp_path / "q.safetensors").entries
    assert {entry.shown_format for entry in entries if entry.quantized} == {name}


def test_a_quantized_layer_is_one_entry(made: Inspection) -> None:
    found = next(entry for entry in made.entries if entry.name == "blocks.1.ffn.0")
    assert (found.quantized, found.format, found.shape) == (True, "int8_tensorwise", (512, 256))
    assert (found.scale, found.group, found.full_precision, found.input_scale) == ((512, 1), 64, False, False)
    kept = next(entry for entry in made.entries if entry.name == "blocks.1.ffn.0.bias")
    assert kept == Entry(name="blocks.1.ffn.0.bias", quantized=False, format="bfloat16", shape=(512,), nbytes=1024)
    flags = [entry.quantized for entry in made.entries]
    assert flags == sorted(flags, reverse=True)


def test_file_states_its_provenance(made: Inspection) -> None:
    assert made.provenance is not None
    assert made.provenance.version == VERSION
    assert made.provenance.load_recipe() == Recipe(format="int8_convrot", rotation_group=64)
    assert made.profile == "wan"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_foreign_metadata_gives_no_provenance(text: str, tmp_path: Path) -> None:
    assert look({"a": torch.ones(1)}, tmp_path, {PROVENANCE_KEY: text}).provenance is None


def test_float_file_has_no_obstacles(digits_path: Path) -> None:
    found = inspect_file(digits_path)
    assert not any(entry.quantized for entry in found.entries)
    assert (found.provenance, found.obstacles, found.disagreements) == (None, [], [])


@pytest.mark.parametrize("name", list(FORMATS))
def test_engine_files_have_no_obstacles(name: str, digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format=name))
    found = inspect_file(tmp_path / "q.safetensors")
    assert found.disagreements == []
    if not FORMATS[name].stock:
        assert len(found.obstacles) == 1
        assert "int8_blockwise" in found.obstacles[0] and "calibrated-rounding is installed" in found.obstacles[0]
        return
    assert found.obstacles == []
    assert STORED_FORMATS[FORMATS[name].comfyui_name].codes == FORMATS[name].layout((256, 256))["weight"][0]


def test_block_wise_layers_are_described(digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format="int8_blockwise_64"))
    found = next(entry for entry in inspect_file(tmp_path / "q.safetensors").entries if entry.name == "blocks.1.ffn.0")
    assert (found.format, found.shape, found.scale, found.block) == ("int8_blockwise", (512, 256), (8, 4), 64)


OBSTACLES = {
    "a format of a pack": (layer({"format": "float8_e4m3fn_blockwise"}), "'float8_e4m3fn_blockwise'"),
    "no format": (layer({}), "None"),
    "another dtype": (layer({"format": "float8_e4m3fn"}), "stored as int8"),
    "no scale": (
        {name: t for name, t in layer({"format": "int8_tensorwise"}).items() if "scale" not in name},
        "lacks weight_scale",
    ),
    "no weight": ({"l.comfy_quant": Marker(format="mxfp8").to_tensor(), "x": torch.ones(1)}, "no weight"),
    "no marker": ({"l.weight": torch.zeros(16, 16, dtype=torch.int8), "l.weight_scale": torch.ones(())}, "no marker"),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_unloadable_layers_are_obstacles(case: str, tmp_path: Path) -> None:
    tensors, text = OBSTACLES[case]
    obstacles = look(tensors, tmp_path).obstacles
    assert len(obstacles) == 1
    assert "'l'" in obstacles[0]
    assert text in obstacles[0]


def test_a_text_encoder_that_comfyui_misreads_is_said(tmp_path: Path) -> None:
    key = "text_model.encoder.layers.0.mlp.fc1"
    tensors = {name.replace("l.", f"{key}.", 1): t for name, t in layer({"format": "int8_tensorwise"}).items()}
    assert "text encoder" in look(tensors, tmp_path).obstacles[0]
    assert look({f"{key}.weight": torch.ones(16, 16)}, tmp_path).obstacles == []


def test_fp8_without_scales_and_older_scaled_files_load(tmp_path: Path) -> None:
    cast = {"l.weight": torch.zeros(16, 16, dtype=torch.float8_e4m3fn)}
    assert look(cast, tmp_path).obstacles == []
    scaled = cast | {"l.scale_weight": torch.ones(()), "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    found = look(scaled, tmp_path)
    assert found.obstacles == []
    assert [entry.scale for entry in found.entries if entry.quantized] == [()]


def test_marker_and_header_that_disagree_are_said(tmp_path: Path) -> None:
    fields = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
    found = look(layer(fields), tmp_path, header(l={**fields, "convrot_groupsize": 256}, other={"format": "mxfp8"}))
    assert found.disagreements == [
        "layer 'l': convrot_groupsize is 64 in the marker and 256 in the header",
        "layer 'other' is in the header and has no marker",
    ]
    assert [entry.group for entry in found.entries if entry.quantized] == [256], "ComfyUI goes by the header"


def test_a_layer_that_the_header_lacks_is_said(tmp_path: Path) -> None:
    found = look(layer({"format": "int8_tensorwise"}), tmp_path, header(other={"format": "int8_tensorwise"}))
    assert "layer 'l' has a marker and is not in the header" in found.disagreements


def test_unreadable_marker_is_an_obstacle(tmp_path: Path) -> None:
    fields = {"format": "int8_tensorwise"}
    tensors = layer(fields) | {"l.comfy_quant": torch.zeros(4)}
    found = look(tensors, tmp_path, header(l=fields))
    assert len(found.disagreements) == 1 and "'l' is float32 [4]" in found.disagreements[0]


@pytest.mark.parametrize("fields", [{"format": "int8_tensorwise"}, {"format": "int8_tensorwise", "per_row": True}])
def test_single_markers_or_headers_do_not_disagree(fields: dict[str, object], tmp_path: Path) -> None:
    assert look(layer(fields), tmp_path).disagreements == []
    assert look(layer(fields), tmp_path, header(l={"format": "int8_tensorwise"})).disagreements == []


def test_formats_state_required_versions(tmp_path: Path) -> None:
    found = look(layer({"format": "int8_tensorwise"}), tmp_path)
    assert found.needs == {"int8_tensorwise": "ComfyUI 0.27"}


@pytest.mark.parametrize("name", ["nvfp4", "convrot_w4a4", "asym_w4a8_int8", "w6a8_int8", "awq_w4a16"])
def test_four_and_six_bit_formats_are_known(name: str, tmp_path: Path) -> None:
    found = look(recognised()[name], tmp_path)
    entry = next(entry for entry in found.entries if entry.quantized)
    assert (entry.format, found.obstacles) == (name, [])
    assert "ComfyUI" in found.needs[name]
    assert entry.group == (None if name in ("nvfp4", "awq_w4a16") else 256)


def test_banks_of_experts_are_named(tmp_path: Path) -> None:
    bank = {"weight": torch.zeros(4, 16, 16, dtype=torch.int8), "weight_scale": torch.ones(4, 16, 1)}
    quantized = layer({"format": "int8_tensorwise", "num_experts": 4}, **bank)
    found = look(
        {**quantized, "mlp.experts.up.weight": torch.ones(3, 8, 8), "conv.weight": torch.ones(3, 8, 8)}, tmp_path
    )
    experts = {entry.name: (entry.quantized, entry.experts) for entry in found.entries}
    assert experts == {"l": (True, 4), "mlp.experts.up.weight": (False, 3), "conv.weight": (False, None)}
    assert found.obstacles == []


@pytest.mark.parametrize("made", ['{"recipe": {"seed": NaN}}', '{"recipe": {"seed": ' + "[" * 500 + "]" * 500 + "}}"])
def test_metadata_that_json_cannot_hold_tells_nothing(made: str, tmp_path: Path) -> None:
    found = look({"a": torch.ones(1)}, tmp_path, {PROVENANCE_KEY: made})
    assert found.provenance is None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["metadata"] == {PROVENANCE_KEY: made}


@pytest.mark.parametrize("name", ["w6a8", "w4a8", "nvfp4"])
def test_packed_files_say_what_they_need(name: str, digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format=name))
    found, fmt = inspect_file(tmp_path / "q.safetensors"), FORMATS[name]
    assert found.provenance is not None
    assert found.provenance.needs == {fmt.comfyui_name: fmt.needs}
    assert fmt.comfyui_name in found.needs


def test_8_bit_files_need_nothing_said(digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format="int8_convrot"))
    provenance = inspect_file(tmp_path / "q.safetensors").provenance
    assert provenance is not None and provenance.needs == {}
