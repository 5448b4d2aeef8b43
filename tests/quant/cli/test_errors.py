"""Every mistake ends in one line that names the thing, a code that is not 0, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.files import source_file
from safetensors.torch import load_file, save_file

from .conftest import Ran, Run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Any:
    """Run a command line that must fail: with this code, naming these texts, changing no file."""

    def call(*argv: object, names: tuple[object, ...], code: int = 1) -> Ran:
        before = contents(tmp_path)
        ran = run(*argv)
        assert ran.code == code
        assert ran.out == ""
        for name in names:
            assert str(name) in ran.error
        assert contents(tmp_path) == before
        return ran

    return call


class Payload:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4], "data_offsets": [start, end]}


MALFORMED = {
    "empty": (b"", "is empty"),
    "text": (b"this is no checkpoint at all", "not a safetensors file"),
    "header larger than the file": (header({}, length=1000), "truncated"),
    "header larger than allowed": (header({}, length=2**60), "not a safetensors file"),
    "overlapping": (header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'b' overlaps"),
    "out of range": (header({"a": entry(0, 800)}, bytes(8)), "truncated"),
    "unknown dtype": (header({"a": entry(0, 8, "F99")}, bytes(8)), "'F99'"),
    "not JSON": ((3).to_bytes(8, "little") + b"{:}", "not valid JSON"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file(case: str, refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[case][0])
    refused("-i", path, names=(path, MALFORMED[case][1]))
    refused("inspect", path, names=(path, MALFORMED[case][1]))
    refused("compare", path, path, names=(path, MALFORMED[case][1]))


def test_a_missing_file(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    refused("-i", path, names=(path, "does not exist"))
    refused("inspect", path, names=(path, "does not exist"))


def test_nothing_is_unpickled(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "unpickled")))
    refused("-i", path, names=(path, "pickle"))
    assert not (tmp_path / "unpickled").exists()


def test_a_file_that_is_truncated_at_any_byte(run: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file({"a.weight": torch.randn(8, 16, dtype=torch.float16)}, whole)
    data = whole.read_bytes()
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        ran = run("-i", cut)
        assert ran.code == 1
        assert str(cut) in ran.error
    assert sorted(os.listdir(tmp_path)) == ["cut.safetensors", "whole.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights(value: float, refused: Any, tiny_path: Path) -> None:
    tensors = load_file(tiny_path)
    tensors["b.weight"][3, 5] = value
    save_file(tensors, tiny_path)
    refused("-i", tiny_path, "--quiet", names=("Layer 'b'", "NaN or infinite"))


def test_an_input_that_is_already_quantized(run: Run, refused: Any, tiny_path: Path) -> None:
    assert run("-i", tiny_path).code == 0
    path = tiny_path.with_name("tiny_int8_convrot.safetensors")
    refused("-i", path, names=(path, "already quantized", "'a'", "--dequantize"))
    refused("-i", path, "--dry-run", names=(path, "already quantized"))


def test_an_output_that_is_the_input(refused: Any, tiny_path: Path) -> None:
    link = tiny_path.with_name("link.safetensors")
    link.symlink_to(tiny_path)
    for target in (tiny_path, link):
        refused("-i", tiny_path, "-o", target, "--overwrite", names=(target, "is read"))


def test_an_output_that_exists(refused: Any, tiny_path: Path) -> None:
    target = tiny_path.with_name("q.safetensors")
    target.write_bytes(b"older")
    refused("-i", tiny_path, "-o", target, names=(target, "exists", "--overwrite"))


def test_unusable_output_folder_is_refused(refused: Any, tiny_path: Path) -> None:
    for folder in (tiny_path.with_name("none"), tiny_path):
        refused("-i", tiny_path, "-o", folder / "q.safetensors", names=(folder, "does not exist"))


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="a folder that nobody may write to, as Linux has")
def test_an_output_folder_that_is_not_writable(refused: Any, tiny_path: Path) -> None:
    folder = Path("/sys/kernel")
    refused("-i", tiny_path, "-o", folder, names=(folder, "cannot be written"))


def test_an_output_that_no_loader_lists(refused: Any, tiny_path: Path) -> None:
    refused("-i", tiny_path, "-o", tiny_path.with_name("q.bin"), names=("q.bin", ".safetensors"))


def test_an_output_name_that_is_too_long(refused: Any, tiny_path: Path) -> None:
    target = tiny_path.with_name("q" * 300 + ".safetensors")
    refused("-i", tiny_path, "-o", target, names=(target.name,))


def test_a_disk_without_room(tiny_path: Path) -> None:
    resource = pytest.importorskip("resource")
    target = tiny_path.with_name("q.safetensors")
    before = sorted(tiny_path.parent.iterdir())
    # In a process of its own: under the limit, the log of these tests might not be written either.
    done = subprocess.run(
        [sys.executable, "-m", "calibrated_rounding.quant", "-i", str(tiny_path), "-o", str(target)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "error" in line] == done.stderr.splitlines()
    assert str(target) in done.stderr and "cannot be written" in done.stderr
    assert sorted(tiny_path.parent.iterdir()) == before


SETTINGS = {
    "--format int9": ("'int9'", "int8_row"),
    "--format bf16": ("bfloat16", "int8_row"),
    "--profile wam": ("'wam'", "'wan'"),
    "--wan": ("'wan'", "generic"),
    "--wan --t5xxl": ("--wan", "--t5xxl"),
    "--exclude_layers a(": ("'a('", "regular expression"),
    "--override a(=mxfp8": ("'a('", "regular expression"),
    "--override a=int9": ("int9",),
    "--exclude_layers .": ("exclude", "No layer"),
    "--optimizer sgd": ("sgd", "prodigy"),
    "--top_p 2": ("top_p",),
    "--num_iter 0": ("iterations",),
    "--convrot --convrot_group_size 100": ("rotation_group", "64"),
    "--scaling_mode block": ("block", "int8_row"),
    "--int8 --scaling_mode block --block_size 32": ("32", "128, 64"),
    "--rounding svd --simple": ("--simple", "svd"),
    "--max_error 0.1": ("upgrade",),
    "--keep_dtype int8": ("keep_dtype", "bfloat16"),
    "--device nowhere": ("nowhere",),
    "--target_gb inf": ("target_gb", "above 0"),
    "--seed 99999999999999999999999": ("seed", "64 bits"),
    "--report made.csv": ("made.csv", ".json"),
    "--report none/made.json": ("none/made.json",),
    "--recipe none.json": ("none.json",),
    "--dry_run --report r.json": ("--dry-run", "--report"),
}


@pytest.mark.parametrize("command", SETTINGS)
def test_a_setting_that_cannot_be(command: str, refused: Any, tiny_path: Path) -> None:
    refused("-i", tiny_path, *command.split(), names=SETTINGS[command])


def test_a_recipe_file_with_an_unknown_field(refused: Any, tiny_path: Path) -> None:
    path = tiny_path.with_name("recipe.json")
    path.write_text('{"fromat": "int8_row"}')
    refused("-i", tiny_path, "--recipe", path, names=("'fromat'", "'format'"))


def test_a_report_never_replaces_a_file_by_accident(refused: Any, tiny_path: Path) -> None:
    path = tiny_path.with_name("config.json")
    path.write_text("{}")
    refused("-i", tiny_path, "--report", path, names=(path, "--overwrite"))


@pytest.mark.parametrize("command", [["inspect"], ["-i"]])
def test_exhausted_memory_is_one_line(
    refused: Any, tiny_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(source_file.SourceFile, "read", fail)
    refused(*command, tiny_path, names=("memory is exhausted",))


USAGE = {
    "": "-i FILE",
    "-i": "-i",
    "-i in.safetensors --itn8": "--int8",
    "-i in.safetensors --num_iter many": "many",
    "-i in.safetensors stray": "stray",
    "inspect": "FILE",
    "compare one.safetensors": "QUANTIZED",
    "profiles wan flux": "flux",
}


@pytest.mark.parametrize("command", USAGE)
def test_bad_usage(command: str, refused: Any) -> None:
    refused(*command.split(), names=(USAGE[command], "--help"), code=2)


def test_an_unknown_profile(refused: Any) -> None:
    refused("profiles", "wam", names=("'wam'", "'wan'"))


def test_layer_name_with_line_break_is_escaped(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a\nb.weight": torch.full((16, 16), float("nan"))}, path)
    refused("-i", path, "--quiet", names=(r"a\nb", "NaN"))


LORA = {f"blocks.{n}.q.lora_{part}.weight": torch.ones(16, 16) for n in range(2) for part in "AB"}


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_files_comfyui_cannot_load_are_refused(refused: Any, tmp_path: Path, more: list[str]) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(LORA, path)
    refused("-i", path, "--quiet", *more, names=(path, "This is a LoRA", "--force"))


def test_one_shard_alone_is_refused(refused: Any, tiny_path: Path) -> None:
    path = tiny_path.rename(tiny_path.with_name("model-00001-of-00002.safetensors"))
    refused("-i", path, "--quiet", names=(path, "1 of 2 shards", ".safetensors.index.json"))


def test_force_names_what_comfyui_cannot_load(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(LORA, path)
    for more in (["--dry-run"], []):
        ran = run("-i", path, "-o", tmp_path / "q.safetensors", "--force", *more)
        assert ran.code == 0
        assert "Forced, although ComfyUI will not load the result. This is a LoRA" in ran.out
    assert "This is a LoRA" in run("inspect", tmp_path / "q.safetensors").out


def test_inspect_names_unquantizable_files(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(LORA, path)
    assert "it cannot be quantized for ComfyUI: This is a LoRA" in run("inspect", path).out
    assert json.loads(run("inspect", path, "--json").out)["refusal"].startswith("This is a LoRA")
