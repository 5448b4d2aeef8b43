"""The public functions, on the shipped trained model."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import (
    VERSION,
    AlreadyQuantizedError,
    Cancelled,
    CheckpointError,
    InputStatistics,
    LayerError,
    ProfileError,
    Progress,
    QuantError,
    Recipe,
    RecipeError,
    Report,
    SvdSettings,
    plan_file,
    quantize_file,
    quantize_state_dict,
    quantize_tensor,
)
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.formats import FORMATS, int8_blockwise
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.quant.rounding import round_nearest
from calibrated_rounding.quant.seeds import layer_seed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
EVERY_FORMAT = pytest.mark.parametrize("name", list(FORMATS))
LAYER = "blocks.1.ffn.0"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@EVERY_FORMAT
@pytest.mark.parametrize("rounding", ["nearest", "svd"])
def test_file_and_state_dict_hold_the_same(
    name: str, rounding: str, digits_path: Path, digits: Tensors, tmp_path: Path
) -> None:
    recipe = Recipe(format=name, rounding=rounding, svd=SvdSettings(iterations=4))
    quantize_file(digits_path, tmp_path / "q.safetensors", recipe)
    written = load_file(tmp_path / "q.safetensors")
    in_memory, _ = quantize_state_dict(digits, recipe)
    assert written.keys() == in_memory.keys()
    for key, tensor in written.items():
        assert tensor.dtype == in_memory[key].dtype
        assert torch.equal(tensor.float(), in_memory[key].float()), key


@pytest.mark.parametrize("rounding", ["nearest", "svd"])
def test_same_command_same_bytes(rounding: str, digits_path: Path, tmp_path: Path) -> None:
    recipe = Recipe(rounding=rounding, svd=SvdSettings(iterations=3), bias_correction="synthetic")
    for name in ("a", "b"):
        torch.rand(7)  # the caller's random state must not matter
        quantize_file(digits_path, tmp_path / name, recipe)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_markers_header_and_metadata_agree(digits_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    recipe = Recipe(format="int8_convrot", overrides=(("cross_attn", "fp8"),))
    report = quantize_file(digits_path, target, recipe)
    header = json.loads(metadata(target)["_quantization_metadata"])
    tensors = load_file(target)
    markers = {
        key.removesuffix(".comfy_quant"): json.loads(bytes(value.tolist()))
        for key, value in tensors.items()
        if key.endswith(".comfy_quant")
    }
    assert header["format_version"] == "1.0"
    assert header["layers"] == markers
    assert markers.keys() == {layer.name for layer in report.layers}
    made = json.loads(metadata(target)["calibrated_rounding"])
    assert made["version"] == VERSION
    assert Recipe.from_dict(made["recipe"]) == recipe
    assert made["source_sha256"] == digest(digits_path)
    # What the source says of itself is kept; ComfyUI needs this entry to build the model.
    assert metadata(target)["config"] == metadata(digits_path)["config"]
    for layer in markers:
        scale = tensors[f"{layer}.weight_scale"]
        rows = tensors[f"{layer}.weight"].shape[0]
        assert tuple(scale.shape) == (() if "cross_attn" in layer else (rows, 1))
        assert scale.dtype == torch.float32


@EVERY_FORMAT
def test_reported_error_matches_file(name: str, digits: Tensors) -> None:
    tensors, report = quantize_state_dict(digits, Recipe(format=name))
    floats = as_float(StateDictSource(tensors), dequantize=True)
    for layer in report.layers:
        weight = digits[f"{layer.name}.weight"].double()
        # Reading back rounds to bfloat16, which adds up to 2^-9 of each weight.
        error = float((floats.read(f"{layer.name}.weight").double() - weight).norm() / weight.norm())
        assert error == pytest.approx(layer.errors.weight.error, abs=2**-9)
        assert layer.errors.weight.decibels == pytest.approx(-20 * math.log10(layer.errors.weight.error))
    assert report.totals.bytes_after == sum(t.numel() * t.element_size() for t in tensors.values())
    assert report.totals.bytes_before == sum(t.numel() * t.element_size() for t in digits.values())


def test_report_survives_json_and_reads_as_a_table(digits: Tensors) -> None:
    _, report = quantize_state_dict(digits, Recipe(rounding="svd", svd=SvdSettings(iterations=2)))
    assert Report.from_dict(json.loads(report.to_json())) == report
    table = report.table()
    assert all(layer.name in table for layer in report.layers)
    assert all(kept.reason in table for kept in report.kept)
    assert report.summary() in table


def test_every_tensor_is_accounted_for(digits: Tensors) -> None:
    _, report = quantize_state_dict(digits, Recipe())
    names = [f"{layer.name}.weight" for layer in report.layers] + [kept.name for kept in report.kept]
    assert sorted(names) == sorted(digits)


def test_run_follows_plan(digits_path: Path, digits: Tensors) -> None:
    recipe = Recipe(format="int8_convrot", heuristics=True)
    _, report = quantize_state_dict(digits, recipe)
    assert [layer.name for layer in plan_file(digits_path, recipe).layers.values()] == [r.name for r in report.layers]


@EVERY_FORMAT
@pytest.mark.parametrize("rounding", ["nearest", "svd"])
def test_zero_rows_and_layers_come_back_exactly_zero(name: str, rounding: str, trained: torch.Tensor) -> None:
    part = trained.clone()
    part[5] = 0
    for weight in (part, torch.zeros_like(trained)):
        _, back = quantize_tensor(
            weight, Recipe(format=name, profile="generic", rounding=rounding, svd=SvdSettings(iterations=3))
        )
        assert not back[5].any()
        assert back.isfinite().all()


@EVERY_FORMAT
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rounding", ["nearest", "svd"])
def test_non_finite_weights_name_the_layer(name: str, bad: float, rounding: str, digits: Tensors) -> None:
    weight = digits[f"{LAYER}.weight"].clone()
    weight[3, 4] = bad
    with pytest.raises(LayerError, match=LAYER.replace(".", r"\.")):
        quantize_state_dict(digits | {f"{LAYER}.weight": weight}, Recipe(format=name, rounding=rounding))


@EVERY_FORMAT
def test_quantized_input_is_refused_or_dequantized(name: str, digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format=name))
    with pytest.raises(AlreadyQuantizedError, match="already quantized"):
        quantize_file(tmp_path / "q.safetensors", tmp_path / "r.safetensors")
    assert not (tmp_path / "r.safetensors").exists()
    report = quantize_file(
        tmp_path / "q.safetensors", tmp_path / "r.safetensors", Recipe(format="int8_row", dequantize=True)
    )
    assert len(report.layers) == len(plan_file(digits_path).layers)
    original, twice = load_file(digits_path), as_float(StateDictSource(load_file(tmp_path / "r.safetensors")), True)
    assert original.keys() == twice.tensors.keys()
    loss = {"float8_e5m2": 0.1, "w4a8": 0.1, "nvfp4": 0.13}.get(name, 0.05)
    for key, tensor in original.items():
        assert float((twice.read(key).float() - tensor.float()).norm()) <= loss * float(tensor.float().norm())


@pytest.mark.parametrize("name", ["w6a8", "w4a8"])
def test_int8_convrot_converts_without_the_float_model(name: str, digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "int8.safetensors", Recipe(format="int8_convrot"))
    report = quantize_file(tmp_path / "int8.safetensors", tmp_path / "q.safetensors", Recipe(format=name))
    (note,) = [note for note in report.notes if note.kind == "converted"]
    assert note.level == "warning" and note.values == {"layers": len(report.layers)}
    assert len(report.layers) == len(plan_file(digits_path).layers)
    int8, packed = (
        as_float(StateDictSource(load_file(tmp_path / path)), True, torch.float32)
        for path in ("int8.safetensors", "q.safetensors")
    )
    for layer in report.layers:
        weight = int8.read(f"{layer.name}.weight")
        error = float((packed.read(f"{layer.name}.weight") - weight).norm() / weight.norm())
        assert error == pytest.approx(layer.errors.weight.error, rel=1e-3)
    assert (tmp_path / "q.safetensors").stat().st_size < (tmp_path / "int8.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Recipe(format="int8_row"), Recipe(format="w4a8")),
        (Recipe(format="int8_convrot", rotation_group=64), Recipe(format="w4a8")),
        (Recipe(format="int8_convrot", overrides=(("ffn", "float8_e4m3fn"),)), Recipe(format="w4a8")),
        (Recipe(format="int8_convrot"), Recipe(format="nvfp4")),
        (Recipe(format="int8_convrot"), Recipe(format="w6a8", fallback="int8_row")),
    ],
    ids=["not rotated", "another group", "a mixture", "to a format without rotation", "a fallback without rotation"],
)
def test_other_quantized_sources_are_not_converted(
    source: Recipe, target: Recipe, digits_path: Path, tmp_path: Path
) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", source)
    with pytest.raises(AlreadyQuantizedError, match="already quantized"):
        quantize_file(tmp_path / "q.safetensors", tmp_path / "r.safetensors", target)


def test_header_alone_marks_a_file_as_quantized(digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format="int8_convrot"))
    tensors = {k: v for k, v in load_file(tmp_path / "q.safetensors").items() if not k.endswith(".comfy_quant")}
    save_file(tensors, tmp_path / "header.safetensors", metadata(tmp_path / "q.safetensors"))
    with pytest.raises(AlreadyQuantizedError):
        plan_file(tmp_path / "header.safetensors")
    assert len(plan_file(tmp_path / "header.safetensors", Recipe(dequantize=True)).layers) > 0


def test_legacy_scaled_fp8_and_plain_fp8_are_recognised(digits: Tensors) -> None:
    weight = digits[f"{LAYER}.weight"].float()
    scale = weight.abs().max() / 448
    legacy = dict(digits)
    legacy[f"{LAYER}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    plain = dict(legacy)
    legacy |= {f"{LAYER}.scale_weight": scale, "scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    plain[f"{LAYER}.weight"] = weight.to(torch.float8_e4m3fn)
    plain[f"{LAYER}.bias"] = plain[f"{LAYER}.bias"].to(torch.float8_e4m3fn)
    for tensors in (legacy, plain):
        with pytest.raises(AlreadyQuantizedError, match=LAYER.replace(".", r"\.")):
            quantize_state_dict(tensors)
        result, _ = quantize_state_dict(tensors, Recipe(dequantize=True))
        assert not [key for key in result if "scale_weight" in key or "scaled_fp8" in key]
        back = as_float(StateDictSource(result), True).read(f"{LAYER}.weight").float()
        assert float((back - weight).norm() / weight.norm()) < 0.04
        assert result[f"{LAYER}.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("size", [32, 64, 100, 128])
def test_convert_to_quant_blocks_of_any_size_are_read(size: int, trained: torch.Tensor) -> None:
    """Also blocks that the weight's edge cuts, and a constant input scale, which means nothing."""
    marker = json.dumps({"format": "int8_blockwise", "orig_dtype": "torch.bfloat16", "group_size": size})
    fmt = int8_blockwise(size)
    scale = absmax(trained, fmt)
    layer = {
        "weight": round_nearest(trained, scale, fmt),
        "weight_scale": scale,
        "input_scale": torch.tensor(1.0),
        "comfy_quant": torch.tensor(list(marker.encode()), dtype=torch.uint8),
    }
    source = as_float(StateDictSource({f"{LAYER}.{key}": t for key, t in layer.items()}), True, torch.float32)
    assert [*source.tensors] == [f"{LAYER}.weight"]
    error = source.read(f"{LAYER}.weight") - trained
    step = scale.repeat_interleave(size, 0).repeat_interleave(size, 1)[:512, :256]
    assert bool((error.abs() <= 0.5001 * step).all())


def test_file_that_needs_pack_is_reported(digits: Tensors) -> None:
    _, report = quantize_state_dict(digits, Recipe(format="int8_row", overrides=(("ffn", "int8_blockwise"),)))
    assert report.notes == [notice("needs_pack", formats=["int8_blockwise"])]
    _, stock = quantize_state_dict(digits, Recipe(format="int8_row"))
    assert stock.notes == []


def test_unreadable_format_is_refused_by_name(digits: Tensors) -> None:
    marker = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    tensors = digits | {f"{LAYER}.weight": torch.zeros(512, 128, dtype=torch.uint8), f"{LAYER}.comfy_quant": marker}
    with pytest.raises(AlreadyQuantizedError, match="nvfp4"):
        quantize_state_dict(tensors, Recipe(dequantize=True))


def test_measured_bias_correction_takes_the_mean_error_away(digits: Tensors) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4096, 256, generator=generator) + 3 * torch.randn(256, generator=generator)
    known = {LAYER: InputStatistics(mean=inputs.mean(0))}
    weight, bias = (digits[f"{LAYER}.{part}"].float() for part in ("weight", "bias"))
    tensors = digits | {f"{LAYER}.bias": bias}

    def mean_error(recipe: Recipe) -> float:
        result, _ = quantize_state_dict(tensors, recipe, statistics=known)
        rounded = as_float(StateDictSource(result), True).read(f"{LAYER}.weight").float()
        wanted = inputs @ weight.T + bias
        return float((inputs @ rounded.T + result[f"{LAYER}.bias"] - wanted).mean(0).norm())

    # Reading back in bfloat16 keeps a share of the error; the codes themselves leave next to nothing.
    exact = Recipe(format="float8_e4m3fn", bias_correction="measured")
    assert mean_error(exact) < 0.35 * mean_error(Recipe(format="float8_e4m3fn"))


def test_synthetic_bias_correction_is_optional(digits: Tensors) -> None:
    untouched, _ = quantize_state_dict(digits, Recipe())
    measured, report = quantize_state_dict(digits, Recipe(bias_correction="measured"))
    synthetic, _ = quantize_state_dict(digits, Recipe(format="float8_e5m2", bias_correction="synthetic"))
    assert torch.equal(untouched[f"{LAYER}.bias"], digits[f"{LAYER}.bias"])
    assert torch.equal(measured[f"{LAYER}.bias"], digits[f"{LAYER}.bias"])
    assert report.notes == [notice("no_bias_corrected")]
    assert not torch.equal(synthetic[f"{LAYER}.bias"], digits[f"{LAYER}.bias"])


def test_measured_input_scale_is_written(digits: Tensors) -> None:
    recipe = Recipe(format="float8_e4m3fn", input_scale="absmax")
    result, report = quantize_state_dict(digits, recipe, statistics={LAYER: InputStatistics(absmax=896.0)})
    scales = {key: value for key, value in result.items() if key.endswith(".input_scale")}
    assert {key: float(value) for key, value in scales.items()} == {f"{LAYER}.input_scale": 2.0}
    assert scales[f"{LAYER}.input_scale"].dim() == 0
    assert report.notes == [notice("no_input_scale", layers=len(report.layers) - 1)]


def test_mixed_precision_takes_cheapest_allowed_format(digits: Tensors) -> None:
    narrow = quantize_state_dict(digits, Recipe(format="int8_row"))[1]
    limit = sorted(layer.errors.weight.error for layer in narrow.layers)[len(narrow.layers) // 2]
    recipe = Recipe(format="int8_row", upgrade="int8_convrot", max_error=limit)
    _, report = quantize_state_dict(digits, recipe)
    by_name = {layer.name: layer for layer in narrow.layers}
    assert all(layer.errors.weight.error <= limit for layer in report.layers)
    for layer in report.layers:
        assert (layer.format == "int8_row") == (by_name[layer.name].errors.weight.error <= limit)
    left = [kept for kept in report.kept if "no format stays under" in kept.reason]
    assert len(report.layers) + len(left) == len(narrow.layers)
    assert left
    assert "int8_row (0." in left[0].reason and "int8_convrot/256 (0." in left[0].reason


def test_progress_counts_every_layer_and_weight(digits: Tensors) -> None:
    seen: list[Progress] = []
    _, report = quantize_state_dict(digits, progress=seen.append)
    assert [event.done for event in seen] == list(range(len(report.layers) + 1))
    assert [event.last.name for event in seen[1:] if event.last] == [layer.name for layer in report.layers]
    assert [event.next_layer for event in seen[:-1]] == [layer.name for layer in report.layers]
    assert seen[0].fraction == 0
    assert seen[-1].fraction == 1
    assert seen[-1].weights_done == sum(layer.shape[0] * layer.shape[1] for layer in report.layers)


def test_cancel_within_a_layer_leaves_the_old_file(digits_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    target.write_bytes(b"older")
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20  # in the middle of the first layer's iterations

    done: list[Progress] = []
    with pytest.raises(Cancelled):
        quantize_file(digits_path, target, Recipe(rounding="svd"), progress=done.append, cancel=cancel)
    assert len(done) == 1
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_target_must_not_be_the_source(digits_path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(digits_path)
    with pytest.raises(CheckpointError):
        quantize_file(digits_path, tmp_path / "link.safetensors")


def test_sharded_input_gives_the_same_tensors(digits: Tensors, digits_path: Path, tmp_path: Path) -> None:
    names = sorted(digits)
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(weight_map.values()):
        save_file({n: digits[n] for n in names if weight_map[n] == part}, tmp_path / part, metadata(digits_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    quantize_file(index, tmp_path / "sharded.safetensors")
    quantize_file(digits_path, tmp_path / "whole.safetensors")
    sharded, whole = (load_file(tmp_path / f"{name}.safetensors") for name in ("sharded", "whole"))
    assert sharded.keys() == whole.keys()
    assert all(torch.equal(sharded[key], whole[key]) for key in whole)


def test_prefixed_model_in_a_larger_checkpoint(digits: Tensors) -> None:
    prefixed = {f"model.diffusion_model.{key}": value for key, value in digits.items()}
    vae = {"first_stage_model.decoder.mid.weight": torch.randn(64, 64)}
    result, report = quantize_state_dict(prefixed | vae, Recipe())
    plain, _ = quantize_state_dict(digits, Recipe())
    assert report.profile == "wan"
    assert torch.equal(result["first_stage_model.decoder.mid.weight"], vae["first_stage_model.decoder.mid.weight"])
    assert {key.removeprefix("model.diffusion_model.") for key in result if key not in vae} == plain.keys()


def test_layer_seed_depends_on_name_only(digits: Tensors) -> None:
    recipe = Recipe(rounding="svd", svd=SvdSettings(iterations=3), profile="generic")
    both, _ = quantize_state_dict(digits, recipe)
    alone, _ = quantize_state_dict({f"{LAYER}.weight": digits[f"{LAYER}.weight"]}, recipe, force=True)
    assert torch.equal(both[f"{LAYER}.weight"], alone[f"{LAYER}.weight"])
    assert layer_seed("a", 0) != layer_seed("b", 0)


def test_a_file_appears_whole_or_not_at_all(digits: Tensors, tmp_path: Path) -> None:
    weight = digits[f"{LAYER}.weight"].clone()
    weight[0, 0] = torch.nan
    save_file(digits | {f"{LAYER}.weight": weight}, tmp_path / "in.safetensors")
    with pytest.raises(QuantError):
        quantize_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_requantizing_removes_padding(digits: Tensors) -> None:
    weight = digits[f"{LAYER}.weight"][:40, :48]
    padded, _ = quantize_state_dict({"odd.weight": weight}, Recipe(format="mxfp8"))
    assert tuple(padded["odd.weight"].shape) == (64, 64)
    again, _ = quantize_state_dict(padded, Recipe(format="int8_row", dequantize=True))
    assert tuple(again["odd.weight"].shape) == (40, 48)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("comfy_quant", b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 3}'),
        ("comfy_quant", b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": "x"}'),
        ("comfy_quant", b'{"format": "int8_tensorwise", "orig_shape": [9999, 2]}'),
        ("comfy_quant", b'{"format": "int8_tensorwise", "orig_shape": "all"}'),
        ("comfy_quant", b'{"format": "int8_blockwise", "group_size": 0}'),
        ("comfy_quant", b'{"format": "int8_blockwise", "group_size": "128"}'),
        ("comfy_quant", b'{"format": "int8_blockwise", "group_size": 128}'),
        ("comfy_quant", b"[]"),
        ("comfy_quant", b"\xff"),
        ("weight_scale", torch.ones(7)),
        ("weight_scale", torch.ones(2, 2, 2)),
    ],
)
def test_damaged_quantized_layers_are_named(part: str, value: bytes | torch.Tensor, digits: Tensors) -> None:
    tensors, _ = quantize_state_dict(digits, Recipe(format="int8_row"))
    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(list(value), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=LAYER.replace(".", r"\.")):
        quantize_state_dict(tensors | {f"{LAYER}.{part}": tensor}, Recipe(dequantize=True))


def recorded(digits: Tensors) -> Calibration:
    """Correlated inputs for every layer of the model, under names without a prefix."""
    collector = Collector(rows=512)
    generator = torch.Generator().manual_seed(0)
    for key, weight in digits.items():
        if key.endswith(".weight") and weight.dim() == 2:
            width = weight.shape[1]
            mixing = torch.randn(width, width, generator=generator) * torch.arange(1, width + 1) ** -0.7
            collector.add(key.removesuffix(".weight"), torch.randn(512, width, generator=generator) @ mixing.T)
    return collector.finish({k.removesuffix(".weight"): fingerprint(v) for k, v in digits.items() if v.dim() == 2})


@EVERY_FORMAT
def test_calibrated_rounding_halves_output_error(name: str, digits: Tensors, tmp_path: Path) -> None:
    recorded(digits).save(tmp_path / "c.safetensors")
    calibration = Calibration.load(tmp_path / "c.safetensors")
    prefixed = {f"model.diffusion_model.{key}": value for key, value in digits.items()}
    for tensors in (digits, prefixed):
        _, report = quantize_state_dict(tensors, Recipe(format=name, rounding="calibrated"), statistics=calibration)
        pairs = [layer.errors.output_w8a16 for layer in report.layers]
        assert all(pair is not None and pair.error < 0.55 * pair.nearest for pair in pairs)
        assert Report.from_dict(json.loads(report.to_json())) == report


def test_layer_without_inputs_is_rounded_to_nearest(digits: Tensors) -> None:
    partial = {name: known for name, known in recorded(digits).items() if name != LAYER}
    result, report = quantize_state_dict(digits, Recipe(rounding="calibrated"), statistics=partial)
    nearest, _ = quantize_state_dict(digits, Recipe())
    assert torch.equal(result[f"{LAYER}.weight"], nearest[f"{LAYER}.weight"])
    notes = {layer.name: layer.notes for layer in report.layers}
    missing = notice("nearest_without_inputs")
    assert notes.pop(LAYER) == (missing,)
    assert not any(missing in others for others in notes.values())


def test_calibrated_rounding_needs_matching_calibration(digits: Tensors) -> None:
    recipe = Recipe(rounding="calibrated")
    with pytest.raises(RecipeError, match="needs recorded inputs"):
        quantize_state_dict(digits, recipe)
    other = digits | {f"{LAYER}.weight": digits[f"{LAYER}.weight"] * 2}
    with pytest.raises(ProfileError, match=LAYER.replace(".", r"\.")):
        quantize_state_dict(other, recipe, statistics=recorded(digits))


def test_auto_mixes_8_6_and_4_bits_within_a_size(digits: Tensors) -> None:
    formats = ("int8_convrot", "w6a8", "w4a8")
    before = sum(tensor.nbytes for tensor in digits.values())
    errors = []
    for share in (0.55, 0.6, 0.66):
        recipe = Recipe(format="auto", formats=formats, target_share=share, rotation_group="auto")
        tensors, report = quantize_state_dict(digits, recipe)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= share * before
        assert {layer.format for layer in report.layers} <= {*formats}
        assert all(layer.group for layer in report.layers if layer.format != "int8_convrot")
        errors.append(report.totals.weight.error if report.totals.weight else 1.0)
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[-1]
