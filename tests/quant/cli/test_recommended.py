"""``--recommended`` and ``formats``: what the command line chooses for a machine, and what it says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.planning import machine
from calibrated_rounding.quant.planning.recommendation import CLOSENESS
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tests.quant.cli.conftest import Run

DIGITS = Path(__file__).parents[3] / "examples" / "models" / "diffusion_models" / "digits_wan.safetensors"


def test_recommended_file_is_made_with_reasons(run: Run, tmp_path: Path) -> None:
    ran = run("-i", DIGITS, "--recommended", "-o", tmp_path)
    assert ran.code == 0
    assert "note: Recommended: int8_convrot, nearest." in ran.err
    recipe = inspect_file(tmp_path / "digits_wan_int8_convrot.safetensors").provenance.recipe
    assert (recipe["format"], recipe["rounding"]) == ("int8_convrot", "nearest")


def test_preset_decides(run: Run, tmp_path: Path) -> None:
    ran = run("-i", DIGITS, "--recommended", "small", "--dry-run")
    assert ran.code == 0 and "digits_wan_w4a8.safetensors" in ran.out


def test_small_memory_takes_fewer_bits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_computer_memory", lambda: 3_500_000)
    ran = run("-i", DIGITS, "--recommended", "--dry-run")
    assert "leaves a fifth of 3.5 MB free" in ran.err
    assert "digits_wan_w6a8.safetensors" in ran.out


@pytest.mark.parametrize(
    "option", ["--format mxfp8", "--int8", "--fp8", "--target-gb 2", "--rounding svd", "--upgrade mxfp8 --max-error 1"]
)
def test_contradictions_are_refused(run: Run, option: str) -> None:
    ran = run("-i", DIGITS, "--recommended", *option.split())
    assert ran.code == 1
    assert ran.error == f"error: --recommended decides what {option.split()[0]} would; give one of them."


def test_formats_are_listed_for_this_machine(run: Run) -> None:
    lines = run("formats").out.splitlines()
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(FORMATS)]}
    assert rows.keys() == FORMATS.keys()
    assert (
        rows["int8_convrot"].endswith("runs in 8 bits here")
        and str(CLOSENESS["int8_convrot"].nearest) in rows["int8_convrot"]
    )
    assert rows["float8_e4m3fn"].endswith("only saves memory here")
    assert max(map(len, lines)) <= 80
