"""convert-to-quant (PyPI), the converter that the field uses, run as a whole process from its command line."""

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
"""The peer's options for those of the pack's formats that it writes, too."""

NEAREST = ("--simple",)
"""Without this it learns the rounding."""


def add_argument(parser: ArgumentParser) -> None:
    """``--peer``; None where there is no peer."""
    parser.add_argument("--peer", default=shutil.which("ctq"), metavar="PATH", help="the peer's executable")


def command(peer: str, source: Path, target: Path, fmt: str, options: Sequence[str] = ()) -> list[str]:
    """What makes ``target`` of ``source`` in one of `FORMATS`, in files that ComfyUI loads."""
    return [peer, "-i", str(source), "-o", str(target), "--save-quant-metadata", *FORMATS[fmt], *options]


def versions(peer: str | None) -> dict[str, str]:
    """The version installed beside the peer's executable; nothing without one."""
    if peer is None:
        return {}
    program = f"from importlib.metadata import version; print(version('{PACKAGE}'))"
    asked = [str(Path(peer).with_name("python")), "-c", program]
    return {PACKAGE: subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"}
