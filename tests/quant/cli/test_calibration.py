"""The option --calibration: what it makes of the recipe and the file, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, Recipe, quantize_file, quantize_state_dict
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.recorder import Recorder
from calibrated_rounding.quant.reports.provenance import PROVENANCE_KEY
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .conftest import Run


def written(path: Path) -> Path:
    return path.with_name("tiny_int8_convrot.safetensors")


def rounding_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str(json.loads(file.metadata()[PROVENANCE_KEY])["recipe"]["rounding"])


def test_file_equals_engine_output(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    assert run("-i", tiny_path, "--calibration", calibration_path).code == 0
    wanted = tiny_path.with_name("api.safetensors")
    recipe = Recipe(rounding="calibrated")
    quantize_file(tiny_path, wanted, recipe, statistics=Calibration.load(calibration_path))
    assert written(tiny_path).read_bytes() == wanted.read_bytes()


def test_checkout_module_writes_same_file(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    """``python -m quant``: there `quant` and `kernels` are no parts of one package."""
    assert run("-i", tiny_path, "--calibration", calibration_path).code == 0
    target = tiny_path.with_name("checkout.safetensors")
    command = [sys.executable, "-m", "quant", "-i", tiny_path, "--calibration", calibration_path, "-o", target]
    done = subprocess.run([*command, "--device", "cpu"], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == written(tiny_path).read_bytes()


@pytest.mark.parametrize(
    ("words", "rounding"),
    [
        ((), "calibrated"),
        (("--rounding", "nearest"), "nearest"),
        (("--simple",), "nearest"),
        (("--num_iter", 2), "svd"),
    ],
)
def test_calibration_implies_calibrated_rounding(
    run: Run, tiny_path: Path, calibration_path: Path, words: tuple[object, ...], rounding: str
) -> None:
    ran = run("-i", tiny_path, "--calibration", calibration_path, *words)
    assert ran.code == 0
    assert rounding_of(written(tiny_path)) == rounding
    assert ("The calibration only measures" in ran.err) == (rounding != "calibrated")


def test_calibration_serves_nearest_biases_and_scales(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    words = ("--format", "fp8", "--simple", "--bias_correction", "measured", "--input_scale")
    ran = run("-i", tiny_path, "--calibration", calibration_path, *words)
    assert "only measures" not in ran.err
    made = load_file(tiny_path.with_name("tiny_float8_e4m3fn.safetensors"))
    assert not torch.equal(made["a.bias"], load_file(tiny_path)["a.bias"])
    assert {"a.input_scale", "b.input_scale"} <= made.keys()


def test_calibrated_rounding_without_it_is_refused(run: Run, tiny_path: Path) -> None:
    ran = run("-i", tiny_path, "--rounding", "calibrated")
    assert ran.code != 0
    assert "needs recorded inputs" in ran.error
    assert not written(tiny_path).exists()


def test_calibration_of_other_weights_is_refused(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    tensors = load_file(tiny_path)
    save_file(tensors | {"b.weight": -tensors["b.weight"]}, tiny_path)
    ran = run("-i", tiny_path, "--calibration", calibration_path)
    assert ran.code != 0
    assert "1 of 2 layers" in ran.error and "(b)" in ran.error and "another model" in ran.error
    assert not written(tiny_path).exists()


def test_a_calibration_of_other_layers_is_refused(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    save_file({f"other.{key}": tensor for key, tensor in load_file(tiny_path).items()}, tiny_path)
    ran = run("-i", tiny_path, "--calibration", calibration_path)
    assert ran.code != 0
    assert "another model" in ran.error


@pytest.mark.parametrize("wrong", ["missing", "a model"])
def test_invalid_calibration_is_refused_by_name(run: Run, tiny_path: Path, wrong: str) -> None:
    named = tiny_path if wrong == "a model" else tiny_path.with_name("missing.safetensors")
    ran = run("-i", tiny_path, "--calibration", named)
    assert ran.code != 0
    assert named.name in ran.error
    assert not written(tiny_path).exists()


def test_the_calibration_is_never_overwritten(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    before = calibration_path.read_bytes()
    ran = run("-i", tiny_path, "--calibration", calibration_path, "-o", calibration_path, "--overwrite")
    assert ran.code != 0
    assert "choose another output" in ran.error
    assert calibration_path.read_bytes() == before


def test_layers_that_never_ran_are_named_in_every_report(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(64, 32), "b": torch.nn.Linear(32, 16)})
    tensors = load_file(tiny_path)
    for name, layer in model.items():
        layer.weight.data = tensors[f"{name}.weight"]
    recorder, calibration = Recorder(), tmp_path / "recorded.safetensors"
    with recorder.watch(model), torch.inference_mode():
        model["a"](torch.randn(64, 64))
    recorder.calibration().save(calibration)
    text = (
        "Quantized without recorded inputs: b. These layers did not run during the recording, or their inputs were not "
        "finite."
    )
    for suffix in ("txt", "json"):
        report = tmp_path / f"r.{suffix}"
        ran = run("-i", tiny_path, "--calibration", calibration, "--report", report, "--overwrite")
        assert text in ran.out.splitlines()
        if suffix == "txt":
            assert text in report.read_text().splitlines()
        else:
            notes = json.loads(report.read_text())["notes"]
            assert {"kind": "layers_unrecorded", "level": "warning", "values": {"layers": "b"}} in notes


def test_layers_that_are_kept_need_no_inputs(tiny_path: Path, calibration_path: Path) -> None:
    calibration = replace(Calibration.load(calibration_path), unrecorded=("b", "elsewhere"))
    recipe = Recipe(rounding="calibrated", exclude=("^b$",))
    report = quantize_file(tiny_path, written(tiny_path), recipe, statistics=calibration)
    assert "layers_unrecorded" not in {note.kind for note in report.notes}


@pytest.mark.parametrize("known_as", ["a", "model.diffusion_model.a"])
def test_layers_that_never_ran_are_found_under_a_prefix(known_as: str) -> None:
    weights = {f"model.diffusion_model.{name}.weight": torch.randn(32, 32) for name in ("a", "b")}
    known = InputStatistics(rows=torch.randn(16, 32))
    prefix = known_as.removesuffix("a")
    calibration = Calibration(
        samples={f"{prefix}b": known}, shared={f"{prefix}b": f"{prefix}b"}, fingerprints={}, unrecorded=(known_as,)
    )
    _, report = quantize_state_dict(weights, Recipe(profile="generic"), statistics=calibration, force=True)
    named = [note.values["layers"] for note in report.notes if note.kind == "layers_unrecorded"]
    assert named == ["model.diffusion_model.a"]


def test_inspect_recognises_a_calibration(run: Run, calibration_path: Path) -> None:
    lines = run("inspect", calibration_path).out.splitlines()
    assert lines[0] == "This is a calibration, for --calibration; it holds no model."
    assert "layers calibrated" in lines[1]
    data = json.loads(run("inspect", calibration_path, "--json").out)
    assert data["kind"] == "calibration" and set(data["rows_seen"]) | set(data["shared"]) >= {"a", "b"}


def test_thin_calibration_is_said(run: Run, tiny_path: Path, calibration_path: Path) -> None:
    whole = Calibration.load(calibration_path)
    samples = {
        name: replace(sample, rows=None if sample.rows is None else sample.rows[:6])
        for name, sample in whole.samples.items()
    }
    thin = calibration_path.with_name("thin.safetensors")
    replace(whole, samples=samples).save(thin)
    for words in (("-i", tiny_path, "--calibration", thin), ("inspect", thin)):
        ran = run(*words)
        assert ran.code == 0 and "too thin" in ran.out and "fewer than 8 rows (6 at the fewest)" in ran.out
    assert "nearest" in run("-i", tiny_path, "--calibration", thin, "--verbose", "--overwrite").out
