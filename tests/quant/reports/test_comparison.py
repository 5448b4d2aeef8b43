"""The distance between two checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Progress, Recipe, quantize_file
from calibrated_rounding.quant.errors import CheckpointError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.reports.comparison import compare_files
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("name", list(FORMATS))
def test_errors_match_the_report(name: str, digits_path: Path, tmp_path: Path) -> None:
    report = quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format=name))
    found = compare_files(digits_path, tmp_path / "q.safetensors")
    errors = {layer.name: layer.error for layer in found.layers}
    assert errors == pytest.approx({layer.name: layer.errors.weight.error for layer in report.layers}, rel=1e-3)
    assert report.totals.weight is not None
    assert found.mean_error == pytest.approx(report.totals.weight.error, rel=1e-3)
    assert min(errors.values()) <= found.total_error <= max(errors.values())
    assert (found.same, found.changed, found.missing, found.extra, found.mismatched) == (50, [], [], [], [])


def test_padding_is_not_a_difference(tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(40, 48)}, tmp_path / "f.safetensors")
    report = quantize_file(tmp_path / "f.safetensors", tmp_path / "q.safetensors", Recipe(format="mxfp8"))
    found = compare_files(tmp_path / "f.safetensors", tmp_path / "q.safetensors")
    assert found.mismatched == []
    assert found.layers[0].error == pytest.approx(report.layers[0].errors.weight.error, rel=1e-3)


def test_tensors_of_one_file_only_are_listed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}, tmp_path / "f.safetensors")
    save_file({"b": torch.ones(2), "c": torch.ones(3), "d": torch.ones(2)}, tmp_path / "q.safetensors")
    found = compare_files(tmp_path / "f.safetensors", tmp_path / "q.safetensors")
    assert (found.missing, found.extra, found.same) == (["a"], ["d"], 1)
    assert found.mismatched == ["c: [2] and [3]"]


def test_changed_tensor_is_listed(tmp_path: Path) -> None:
    save_file({"a": torch.full((10,), 2.0), "zero": torch.zeros(3)}, tmp_path / "f.safetensors")
    save_file({"a": torch.full((10,), 3.0), "zero": torch.ones(3)}, tmp_path / "q.safetensors")
    found = compare_files(tmp_path / "f.safetensors", tmp_path / "q.safetensors")
    assert {row.name: row.error for row in found.changed} == {"a": 0.5, "zero": math.inf}
    assert found.changed[0].sqnr_db == pytest.approx(6.02, abs=0.01)
    rows = json.loads(json.dumps(found.to_dict(), allow_nan=False))["changed"]
    assert [row["error"] for row in rows] == [0.5, None]


def test_cast_has_its_rounding_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    save_file({"a": torch.randn(1 << 21, generator=generator)}, tmp_path / "f.safetensors")
    save_file({"a": load_file(tmp_path / "f.safetensors")["a"].bfloat16()}, tmp_path / "q.safetensors")
    found = compare_files(tmp_path / "f.safetensors", tmp_path / "q.safetensors")
    assert 1e-3 < found.changed[0].error < 2**-8


def test_files_without_a_common_tensor_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "f.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "q.safetensors")
    with pytest.raises(CheckpointError, match="no tensor in common"):
        compare_files(tmp_path / "f.safetensors", tmp_path / "q.safetensors")


def test_progress_is_measured_in_weights(tmp_path: Path) -> None:
    save_file({"a": torch.ones(30), "b": torch.ones(10)}, tmp_path / "f.safetensors")
    seen: list[Progress] = []
    compare_files(tmp_path / "f.safetensors", tmp_path / "f.safetensors", seen.append)
    assert [(step.next_layer, step.fraction) for step in seen] == [("a", 0.0), ("b", 0.75), (None, 1.0)]
