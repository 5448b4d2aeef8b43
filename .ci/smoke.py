"""Every feature of the command line, in an environment that has the pack and what it declares, and nothing else.

    .venv/bin/python .ci/smoke.py

Tests run where their own packages are installed, which hides a dependency that is not declared. Prints a line for each
command that does not end as it should, and exits with 1 if there is one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "examples" / "models" / "diffusion_models" / "digits_wan.safetensors"
FORMATS = (
    *("float8_e4m3fn", "float8_e5m2", "int8_tensor", "int8_row", "int8_convrot"),
    *("mxfp8", "int8_blockwise", "int8_blockwise_64", "w6a8", "w4a8", "nvfp4"),
)
RECORD = f"""
import torch
from safetensors.torch import load_file

class Layer(torch.nn.Module):
    pass

def main(recorder):
    model = Layer()
    for key, weight in load_file({str(MODEL)!r}).items():
        if not key.endswith(".weight") or weight.dim() != 2:
            continue
        *path, name = key.removesuffix(".weight").split(".")
        place = model
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, Layer())
            place = getattr(place, part)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.float()
        place.add_module(name, layer)
    torch.manual_seed(0)
    with recorder.watch(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module(torch.randn(64, module.in_features))
"""


def commands(folder: Path) -> Iterator[tuple[list[str], int, str]]:
    """The arguments of each command, the exit code that it must have, and words that it must print."""
    record, calibration = folder / "record.py", folder / "calibration.safetensors"
    record.write_text(RECORD, encoding="utf-8")
    yield ["record", f"{record}:main", "-o", str(calibration), "--rows", "64"], 0, "layers calibrated"

    def convert(*options: str) -> list[str]:
        return ["-i", str(MODEL), "-o", str(folder / "out.safetensors"), "--overwrite", *options]

    known = ("--calibration", str(calibration))
    for name in FORMATS:
        yield convert("--format", name), 0, "Next: "
        yield convert("--format", name, *known, "--bias-correction", "measured"), 0, "Next: "
        yield convert("--format", name, "--rounding", "svd", "--num-iter", "2"), 0, "Next: "
    for optimizer in ("original", "adamw", "radam", "feedback"):
        yield convert("--format", "int8_row", "--optimizer", optimizer, *(["--num-iter", "2"])), 0, "Next: "
    yield convert("--format", "int8_row", "--optimizer", "prodigy"), 1, "prodigy-plus-schedule-free"
    yield convert("--format", "int8_row", "--metric", "inputs", *known, "--rounding", "svd"), 0, "Next: "
    yield convert("--format", "fp8", "--input-scale", "mse", *known, "--rounding", "nearest"), 0, "Next: "
    yield convert("--format", "auto", "--formats", ",".join(FORMATS[:6])), 0, "Next: "
    yield convert("--target-share", "0.7", *known), 0, "Next: "
    yield convert("--format", "int8_convrot", "--convrot-group-size", "auto", "--scale", "auto", *known), 0, "Next: "
    yield convert("--format", "int8_row", "--upgrade", "mxfp8", "--max-error", "0.01"), 0, "Next: "
    yield convert("--int8", "--scaling_mode", "block", "--block_size", "64"), 0, "Next: "
    for suffix in ("json", "txt"):
        yield convert("--mxfp8", "--report", str(folder / f"report.{suffix}")), 0, "Next: "
    yield convert("--dry-run"), 0, "Nothing was written"
    yield ["inspect", str(folder / "out.safetensors")], 0, "mxfp8"
    yield ["inspect", str(folder / "out.safetensors"), "--json"], 0, "mxfp8"
    yield ["compare", str(MODEL), str(folder / "out.safetensors")], 0, "weight error"
    yield ["-i", str(folder / "out.safetensors"), "-o", str(folder / "again.safetensors")], 1, "already quantized"
    yield ["-i", str(folder / "out.safetensors"), "-o", str(folder / "again.safetensors"), "--dequantize"], 0, "Next: "
    yield ["profiles"], 0, "wan"
    yield ["profiles", "wan"], 0, "quantize"
    yield ["--help"], 0, "--format"
    yield ["--version"], 0, "calibrated-rounding"


def main() -> int:
    program, failures, count = Path(sys.executable).with_name("calibrated-rounding"), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for arguments, code, words in commands(Path(folder)):
            done = subprocess.run([program, *arguments], capture_output=True, text=True)
            printed, count = done.stdout + done.stderr, count + 1
            if done.returncode != code or words not in printed or "Traceback" in printed:
                failures += 1
                print(f"{' '.join(arguments)}\n  exit code {done.returncode}, not {code}, or without '{words}':")
                print("  " + "\n  ".join(printed.splitlines()[-4:]))
    print(f"{count - failures} of {count} commands ended as they should")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
