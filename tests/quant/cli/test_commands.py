"""The commands that look: inspect, compare, profiles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.quant.planning.profiles import get_profile, profile_names
from safetensors.torch import save_file

from .conftest import Run


@pytest.fixture
def rotated_path(digits_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "rotated.safetensors"
    quantize_file(digits_path, path, Recipe(format="int8_convrot"))
    return path


def test_inspect_shows_layers_totals_and_origin(run: Run, rotated_path: Path) -> None:
    ran = run("inspect", rotated_path)
    assert ran.code == 0
    lines = ran.out.splitlines()
    layer = next(line for line in lines if line.startswith("blocks.0.ffn.2 "))
    for text in ("int8_convrot", "256x512", "256x1", "rotated in groups of 256"):
        assert text in layer
    assert any(line.startswith("patch_embedding.weight ") and "256x16x1x2x2" in line for line in lines)
    assert any("recognised as wan" in line for line in lines)
    assert any(line.startswith("made by calibrated-rounding") for line in lines)
    assert any(line.startswith("recipe: ") and '"int8_convrot"' in line for line in lines)
    assert lines[-1] == "ComfyUI loads every layer without a pack"


def test_inspect_json_recipe_reproduces_file(run: Run, rotated_path: Path, digits_path: Path, tmp_path: Path) -> None:
    found = json.loads(run("inspect", rotated_path, "--json").out)
    (tmp_path / "recipe.json").write_text(json.dumps(found["provenance"]["recipe"]))
    again = tmp_path / "again.safetensors"
    assert run("-i", digits_path, "-o", again, "--recipe", tmp_path / "recipe.json").code == 0
    assert again.read_bytes() == rotated_path.read_bytes()


def test_compare_shows_each_layer_and_the_total(run: Run, digits_path: Path, rotated_path: Path) -> None:
    ran = run("compare", digits_path, rotated_path)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert sum("int8_convrot" in line for line in lines) == 19
    assert "19 layers quantized, 50 tensors the same" in lines[-1]
    assert "at worst" in lines[-1]


def test_compare_in_json(run: Run, digits_path: Path, rotated_path: Path) -> None:
    ran = run("compare", digits_path, rotated_path, "--json", "--quiet")
    assert ran.err == ""
    found = json.loads(ran.out)
    assert len(found["layers"]) == 19
    assert 0.006 < found["mean_error"] < 0.008


def test_looking_writes_nothing(run: Run, digits_path: Path, rotated_path: Path) -> None:
    before = os.listdir(rotated_path.parent)
    assert run("inspect", rotated_path).code == run("compare", digits_path, rotated_path).code == 0
    assert os.listdir(rotated_path.parent) == before


def test_profiles_are_listed_with_their_titles(run: Run) -> None:
    lines = run("profiles").out.splitlines()
    assert [line.split()[0] for line in lines] == profile_names()
    assert all(get_profile(line.split()[0]).title in line for line in lines)


def test_a_profile_is_shown_with_reasons_and_sources(run: Run) -> None:
    out = run("profiles", "flux").out
    for rule in get_profile("flux").rules:
        assert rule.pattern in out
        assert f"{rule.reason} [{rule.source}]" in out


HOSTILE = "a\nmade by calibrated-rounding 9\x1b[31m\u202e"


def test_names_and_metadata_forge_no_lines(run: Run, tmp_path: Path) -> None:
    path, reference = tmp_path / "m.safetensors", tmp_path / "f.safetensors"
    marker = torch.tensor(list(json.dumps({"format": HOSTILE}).encode()), dtype=torch.uint8)
    tensors = {f"{HOSTILE}.weight": torch.ones(4), "l.weight": torch.zeros(4, 4), "l.comfy_quant": marker}
    save_file(tensors, path, metadata={HOSTILE: HOSTILE})
    save_file({HOSTILE: torch.ones(2), "x": torch.ones(2), f"{HOSTILE}2": torch.ones(1)}, reference)
    changed = tmp_path / "c.safetensors"
    save_file({HOSTILE: torch.zeros(2), "x": torch.ones(2), f"{HOSTILE}3": torch.ones(1)}, changed)
    for arguments in (("inspect", path), ("inspect", path, "--json"), ("compare", reference, changed, "--quiet")):
        ran = run(*arguments)
        assert ran.code == 0 and "made by" in ran.out
        assert not any(line.startswith("made by") for line in ran.out.splitlines())
        assert all(character.isprintable() for character in ran.out.replace("\n", ""))


def test_a_plan_and_a_report_forge_no_lines(run: Run, tmp_path: Path) -> None:
    path, report = tmp_path / "m.safetensors", tmp_path / "report.txt"
    save_file({f"{HOSTILE}.weight": torch.randn(32, 32), f"{HOSTILE}.bias": torch.ones(32)}, path)
    assert run("-i", path, "--report", report, "--quiet", "--format", "int8_row").code == 0
    for text in (run("-i", path, "--dry-run").out, report.read_text(encoding="utf-8")):
        assert "made by" in text
        assert not any(line.startswith("made by") for line in text.splitlines())
        assert all(character.isprintable() for character in text.replace("\n", ""))
