"""convert-to-quant (PyPI), another converter for ComfyUI, run as a whole process from its command line."""

from __future__ import annotations

import shutil
import subprocess
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGE = "convert-to-quant"
ROW = ("--int8", "--scaling-mode", "row")

FORMATS: Mapping[str, tuple[str, ...]] = {
    "float8_e4m3fn": (),
    "int8_row": ROW,
    "int8_convrot": (*ROW, "--convrot"),
    "int8_blockwise": ("--int8", "--scaling-mode", "block", "--block-size", "128"),
    "mxfp8": ("--mxfp8",),
}
"""The pack's formats that it writes too, and its options for them."""

NEAREST = ("--simple",)
"""Option for nearest rounding; without it the rounding is learned."""


def add_argument(parser: ArgumentParser) -> None:
    """Add ``--convert-to-quant``; its value is None if the converter is not installed."""
    parser.add_argument("--convert-to-quant", default=shutil.which("ctq"), metavar="PATH", help="its executable, ctq")


def build_command(executable: str, source: Path, target: Path, fmt: str, options: Sequence[str] = ()) -> list[str]:
    """Build the command that quantizes ``source`` to ``target`` for ComfyUI, in one of `FORMATS`."""
    return [executable, "-i", str(source), "-o", str(target), "--save-quant-metadata", *FORMATS[fmt], *options]


def read_version(executable: str | None) -> dict[str, str]:
    """Read the version that is installed beside the executable; nothing without one."""
    if executable is None:
        return {}
    program = f"from importlib.metadata import version; print(version('{PACKAGE}'))"
    command = [str(Path(executable).with_name("python")), "-c", program]
    return {PACKAGE: subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"}
