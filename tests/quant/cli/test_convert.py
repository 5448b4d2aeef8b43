"""Quantizing a file from the command line, when all goes well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Recipe, Report, quantize_file
from calibrated_rounding.quant import __main__ as start
from calibrated_rounding.quant.cli.options import list_options
from calibrated_rounding.quant.reports.provenance import PROVENANCE_KEY
from calibrated_rounding.quant.version import VERSION
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .conftest import Run


def test_default_is_the_default_recipe_beside_the_input(run: Run, tiny_path: Path) -> None:
    assert run("-i", tiny_path).code == 0
    written = tiny_path.with_name("tiny_int8_convrot.safetensors")
    assert load_file(written)["a.weight"].dtype == torch.int8
    with safe_open(written, "pt") as file:
        assert json.loads(file.metadata()[PROVENANCE_KEY])["recipe"] == Recipe().to_dict()


def test_compatibility_flags_alone_give_fp8(run: Run, tiny_path: Path) -> None:
    assert run("-i", tiny_path, "--comfy_quant").code == 0
    written = load_file(tiny_path.with_name("tiny_float8_e4m3fn.safetensors"))
    assert written["a.weight"].dtype == torch.float8_e4m3fn


def test_file_equals_engine_output(run: Run, digits_path: Path, tmp_path: Path) -> None:
    assert run("-i", digits_path, "-o", tmp_path / "cli.safetensors", "--int8", "--convrot").code == 0
    quantize_file(digits_path, tmp_path / "api.safetensors", Recipe(format="int8_convrot"))
    assert (tmp_path / "cli.safetensors").read_bytes() == (tmp_path / "api.safetensors").read_bytes()


def test_the_same_command_gives_the_same_bytes(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        assert run("-i", tiny_path, "--optimizer", "radam", "--num_iter", 3, "--overwrite").code == 0
        contents.append((tmp_path / "tiny_int8_convrot.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_a_folder_as_output_takes_the_default_name(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("-i", tiny_path, "-o", tmp_path / "out", "--format", "int8").code == 0
    assert os.listdir(tmp_path / "out") == ["tiny_int8_row.safetensors"]


def test_shards_become_one_file_named_after_the_index(run: Run, tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(16, 16)}, tmp_path / "m-1.safetensors")
    save_file({"b.weight": torch.randn(16, 16)}, tmp_path / "m-2.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "m-1.safetensors", "b.weight": "m-2.safetensors"}}))
    assert run("-i", index).code == 0
    assert {"a.weight", "b.weight"} <= load_file(tmp_path / "m_int8_convrot.safetensors").keys()


def test_run_prints_result(run: Run, digits_path: Path, tmp_path: Path) -> None:
    ran = run("-i", digits_path, "-o", tmp_path / "q.safetensors", "--wan")
    assert ran.out.splitlines() == [
        f"{tmp_path / 'q.safetensors'}: 3.03 MB, 68% of 4.45 MB",
        "19 layers quantized, 7 kept (1.51 MB), norms and biases 0.06 MB",
        "wan: 19 layers in int8_convrot",
        "weight error 0.70% (of the weights alone: the output needs a calibration)",
        ran.out.splitlines()[-1],
    ]
    assert ran.out.endswith("s. Next: Load Diffusion Model reads it from models/diffusion_models.\n")
    assert "blocks.1.ffn.2 " not in ran.out
    assert "100%" in ran.err


def test_verbose_tells_every_layer_and_quiet_tells_nothing(run: Run, digits_path: Path, tmp_path: Path) -> None:
    verbose = run("-i", digits_path, "-o", tmp_path / "v.safetensors", "--verbose")
    assert "blocks.1.ffn.2 " in verbose.out
    quiet = run("-i", digits_path, "-o", tmp_path / "q.safetensors", "--quiet", "--block_size", 64)
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_a_setting_without_effect_is_noted(run: Run, tiny_path: Path) -> None:
    assert "note: --block-size has no effect" in run("-i", tiny_path, "--block_size", 64).err


def test_dry_run_lists_layers_and_writes_nothing(run: Run, digits_path: Path, tmp_path: Path) -> None:
    ran = run("-i", digits_path, "-o", tmp_path / "q.safetensors", "--dry-run", "--override", r"blocks\.1\.=bf16")
    assert ran.code == 0
    assert os.listdir(tmp_path) == []
    lines = ran.out.splitlines()
    layer = next(line for line in lines if line.startswith("blocks.0.ffn.2 "))
    assert "256x512" in layer
    assert "int8_convrot" in layer
    assert any("an override asks for this dtype" in line and "blocks.1." in line for line in lines)
    assert any("9 layers to quantize" in line for line in lines)


def test_dry_run_announces_reported_size(run: Run, digits_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    planned = run("-i", digits_path, "-o", target, "--mxfp8", "--dry_run").out
    report = quantize_file(digits_path, target, Recipe(format="mxfp8"))
    totals = report.totals
    assert f"{totals.bytes_before / 1e6:.2f} -> {totals.bytes_after / 1e6:.2f} MB" in planned


def test_a_report_in_json_is_the_report(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert run("-i", tiny_path, "--report", path, "--int8").code == 0
    report = Report.from_dict(json.loads(path.read_text()))
    assert [layer.name for layer in report.layers] == ["a", "b"]
    assert report.recipe["format"] == "int8_row"


def test_a_report_in_text_is_the_table(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    assert run("-i", tiny_path, "--report", path, "--int8").code == 0
    assert "layer" in path.read_text().splitlines()[0]
    assert "2 layers quantized" in path.read_text()


def test_report_recipe_reproduces_file(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    arguments = ("--int8", "--scale", "mse", "--exclude-layers", "^b$", "--report", tmp_path / "report.json")
    assert run("-i", tiny_path, "-o", tmp_path / "1.safetensors", *arguments).code == 0
    recipe = json.loads((tmp_path / "report.json").read_text())["recipe"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert run("-i", tiny_path, "-o", tmp_path / "2.safetensors", "--recipe", tmp_path / "recipe.json").code == 0
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_a_quantized_model_is_dequantized_on_request(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    assert run("-i", tiny_path, "-o", tmp_path / "q.safetensors").code == 0
    assert run("-i", tmp_path / "q.safetensors", "-o", tmp_path / "r.safetensors", "--int8", "--dequantize").code == 0
    assert load_file(tmp_path / "r.safetensors")["a.weight"].dtype == torch.int8


def test_the_source_metadata_is_kept(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    assert run("-i", tiny_path, "-o", tmp_path / "q.safetensors").code == 0
    with safe_open(tmp_path / "q.safetensors", "pt") as file:
        assert file.metadata()["origin"] == "a test"
        assert PROVENANCE_KEY in file.metadata()


def test_overwrite_replaces(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.safetensors"
    target.write_bytes(b"older")
    assert run("-i", tiny_path, "-o", target, "--overwrite").code == 0
    assert "a.weight" in load_file(target)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect", "--help"], ["compare", "--help"], ["profiles", "--help"]]
)
def test_help_is_there(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 0
    assert ran.out.startswith("usage: calibrated-rounding")


def test_help_text_is_current(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrated-rounding", "--help"])
    assert start.main() == 0
    shown = "".join(capsys.readouterr().out.split())
    for option in (option for options in list_options().values() for option in options):
        assert "".join(option.help.split()) in shown, "run: python tools/manual.py"
        assert all(name in shown for name in option.names)


def test_help_fits_eighty_columns(run: Run) -> None:
    assert max(map(len, run("--help").out.splitlines())) <= 80


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from calibrated_rounding.quant.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code, "--help"], cwd=tmp_path, stdout=subprocess.DEVNULL).returncode == 0
    )


def test_version_is_printed(run: Run) -> None:
    assert run("--version").out == f"calibrated-rounding {VERSION}\n"


def test_a_name_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    save_file({"a\x1b[2J.weight": torch.randn(16, 16)}, tmp_path / "m.safetensors")
    ran = run("-i", tmp_path / "m.safetensors", "--verbose")
    assert ran.code == 0
    assert "\x1b" not in ran.out + ran.err
    assert r"a\x1b[2J" in ran.out
