"""The converter's options as tables: what each is called, what it sets, and which profile or format a flag stands for.

An option whose destination is a field of `Recipe` (or ``svd.`` and a field of `SvdSettings`) sets that field; no other
code knows its spelling. Names are written with `-`; `_` is taken as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..formats import FLOATS, FORMATS
from ..formats.rotation import GROUP_SIZES
from ..recipe import AUTO, BIAS_CORRECTIONS, INPUT_SCALES, METRICS, OPTIMIZERS, ROUNDINGS, SCALES, Recipe
from ..version import VERSION
from .console import PROGRAM, Parser

DEFAULT_FORMAT = "float8_e4m3fn"

FIELD_FORMATS: Mapping[tuple[str, str, int | None], str] = {
    ("fp8", "tensor", None): "float8_e4m3fn",
    ("fp8_e5m2", "tensor", None): "float8_e5m2",
    ("int8", "row", None): "int8_row",
    ("int8", "tensor", None): "int8_tensor",
    ("int8", "block", 128): "int8_blockwise",
    ("int8", "block", 64): "int8_blockwise_64",
    ("convrot", "row", None): "int8_convrot",
    ("mxfp8", "block", None): "mxfp8",
}
"""The format that a kind of number, a scaling mode and, where there is a choice, a block size stand for; of several
that fit, the first is meant.
"""

KINDS: Mapping[frozenset[str], str | None] = {
    frozenset(): None,
    frozenset({"int8"}): "int8",
    frozenset({"convrot"}): "convrot",
    frozenset({"int8", "convrot"}): "convrot",
    frozenset({"mxfp8"}): "mxfp8",
}
"""The kind that a set of flags asks for; a set that is not here contradicts itself."""

MODEL_FLAGS: Mapping[str, str] = {
    "anima": "anima",
    "distillation-large": "chroma",
    "distillation-small": "chroma_small",
    "flux2": "flux2",
    "hunyuan": "hunyuan_video15",
    "ltxv2": "ltx2",
    "mistral": "mistral",
    "nerf-large": "nerf_large",
    "nerf-small": "nerf_small",
    "qwen": "qwen_image",
    "radiance": "radiance",
    "t5xxl": "t5xxl",
    "wan": "wan",
    "zimage": "zimage",
    "zimage-l": "zimage",
    "zimage-s": "zimage_small",
    "zimage-refiner": "zimage_refiner",
}
"""The profile that a model flag of the field's converter stands for."""


@dataclass(frozen=True)
class Option:
    """names: the spellings, the first is shown. target: the destination. settings: what `add_argument` takes."""

    names: tuple[str, ...]
    target: str
    help: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        parser.add_argument(*self.names, dest=self.target, default=None, help=self.help, **self.settings)


def _override(text: str) -> tuple[str, str]:
    pattern, equals, fmt = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not REGEX=FORMAT")
    return pattern, fmt


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _group(text: str) -> int | str:
    return text if text == AUTO else int(text)


FLAG: Mapping[str, Any] = {"action": "store_true"}
SWITCH: Mapping[str, Any] = {"action": argparse.BooleanOptionalAction}
TEXT: Mapping[str, Any] = {"metavar": "NAME"}
WHOLE: Mapping[str, Any] = {"type": int, "metavar": "N"}
REAL: Mapping[str, Any] = {"type": float, "metavar": "X"}
FILE: Mapping[str, Any] = {"metavar": "FILE"}
REGEX: Mapping[str, Any] = {"metavar": "REGEX", "action": "append"}
OVERRIDE: Mapping[str, Any] = {"metavar": "REGEX=FORMAT", "action": "append", "type": _override}


def _one_of(names: object) -> dict[str, Any]:
    return {"choices": names}


OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "files": (
        Option(("-i", "--input"), "input", "float model: FILE.safetensors, or FILE.safetensors.index.json", FILE),
        Option(("-o", "--output"), "output", "file or folder (default: INPUT_FORMAT.safetensors beside it)", FILE),
        Option(("--overwrite",), "overwrite", "replace the output file if it exists", FLAG),
        Option(("--recipe",), "recipe", "JSON file with a recipe; options given here go before it", FILE),
        Option(("--report",), "report", "write what was done to FILE: .json, or .txt for a table", FILE),
        Option(("--dry-run",), "dry_run", "print what would be done, from the header alone; write nothing", FLAG),
        Option(("--dequantize",), "dequantize", "take a model that is quantized already; dequantize it first", SWITCH),
    ),
    "format": (
        Option(("--format",), "format", f"{', '.join(FORMATS)}, or auto (default: {DEFAULT_FORMAT})", TEXT),
        Option(
            ("--formats",),
            "formats",
            f"what auto chooses from, by each layer's measured error (default: {','.join(Recipe().formats)})",
            {"type": _names, "metavar": "NAME,NAME"},
        ),
        Option(("--target-gb",), "target_gb", "auto: least error within so many 10^9 bytes; implies auto", REAL),
        Option(("--target-share",), "target_share", "the same, as a share of the input's size", REAL),
        Option(("--target-error",), "target_error", "auto: smallest with this relative error of layers' outputs", REAL),
        Option(("--int8",), "int8", "INT8 with a scale for each row (int8_row)", FLAG),
        Option(("--mxfp8",), "mxfp8", "MXFP8 (mxfp8)", FLAG),
        Option(
            ("--scaling-mode",),
            "scaling_mode",
            "what shares a scale: with --int8 row, tensor or block; there is no block-wise FP8",
            _one_of(("tensor", "row", "block")),
        ),
        Option(("--block-size", "--group-size"), "block_size", "side of INT8 blocks: 128 (default) or 64", WHOLE),
        Option(("--convrot",), "convrot", "INT8 with a scale for each row and rotated inputs (int8_convrot)", FLAG),
        Option(
            ("--convrot-group-size",),
            "rotation_group",
            f"largest group of inputs to rotate: {', '.join(map(str, GROUP_SIZES))}, auto (default: {GROUP_SIZES[0]})",
            {"type": _group, "metavar": "N"},
        ),
        Option(("--scale",), "scale", "how scales are found (default: absmax)", _one_of(SCALES)),
        Option(
            ("--full-precision-matrix-mult",),
            "full_precision_matrix_mult",
            "ask the host to multiply in 16 bits",
            SWITCH,
        ),
        Option(
            ("--input-scale",),
            "input_scale",
            f"write static input scales where inputs were measured (FP8): {', '.join(INPUT_SCALES[1:])} (default: off)",
            {"nargs": "?", "const": INPUT_SCALES[1], "choices": INPUT_SCALES},
        ),
        Option(
            ("--comfy-quant", "--save-quant-metadata"),
            "comfy_quant",
            "taken for compatibility; files are always in ComfyUI's own format, markers and header included",
            FLAG,
        ),
    ),
    "layers": (
        Option(("--exclude-layers",), "exclude", "leave layers whose name the expression finds (repeatable)", REGEX),
        Option(
            ("--override",), "overrides", "another format for layers; the first match counts (repeatable)", OVERRIDE
        ),
        Option(
            ("--fallback",),
            "fallback",
            "format of layers that the chosen one cannot take (default: source, keep)",
            TEXT,
        ),
        Option(("--heur",), "heuristics", "leave layers whose shape gains no speed", SWITCH),
        Option(("--embeddings",), "embeddings", "quantize token embeddings too", SWITCH),
        Option(
            ("--keep-dtype", "--output-dtype"),
            "keep_dtype",
            f"dtype of what stays in floating point: source (default), {', '.join(FLOATS)}",
            TEXT,
        ),
        Option(("--upgrade",), "upgrade", "format of layers whose error exceeds --max-error", TEXT),
        Option(("--max-error",), "max_error", "largest relative weight error, with --upgrade", REAL),
    ),
    "rounding": (
        Option(("--rounding",), "rounding", "how codes are chosen (default: nearest)", _one_of(ROUNDINGS)),
        Option(("--simple",), "simple", "the same as --rounding nearest", FLAG),
        Option(
            ("--calibration",),
            "calibration",
            "recorded inputs of this model's layers, from 'record' or the calibration nodes; implies calibrated",
            FILE,
        ),
        Option(("--optimizer",), "svd.optimizer", f"{', '.join(OPTIMIZERS)}; this and the next seven imply svd", TEXT),
        Option(
            ("--metric",), "svd.metric", "whose directions count: the weight's, or recorded inputs'", _one_of(METRICS)
        ),
        Option(("--num-iter",), "svd.iterations", "iterations", WHOLE),
        Option(("--lr",), "svd.lr", "learning rate (default: the optimizer's own)", REAL),
        Option(("--top-p",), "svd.top_p", "share of the singular directions that counts", REAL),
        Option(("--min-k",), "svd.min_k", "fewest directions", WHOLE),
        Option(("--max-k",), "svd.max_k", "most directions", WHOLE),
        Option(("--full-matrix",), "svd.full", "exact instead of randomized decomposition", SWITCH),
        Option(
            ("--bias-correction",),
            "bias_correction",
            "correct biases for the mean error (default: off)",
            _one_of(BIAS_CORRECTIONS),
        ),
        Option(("--seed", "--manual-seed"), "seed", "of everything random (default: 0)", WHOLE),
    ),
    "running": (
        Option(("--device",), "device", "cpu (default), cuda, cuda:1, ...", TEXT),
        Option(("--quiet",), "quiet", "print errors only", FLAG),
        Option(("--verbose",), "verbose", "print a line for each layer", FLAG),
        Option(("--low-memory",), "low_memory", "taken for compatibility; one layer is held at a time anyway", FLAG),
    ),
}


def converter() -> Parser:
    """The parser of the command line without a command: quantize a file."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} -i FILE [-o FILE] [options]",
        description="Quantize a diffusion model or text encoder into a file that ComfyUI's own loaders take.",
        epilog=f"Other commands: {PROGRAM} inspect FILE, compare FLOAT QUANTIZED, profiles [NAME], "
        "record MODULE:FUNCTION -o FILE.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group)
    _add_models(parser)
    return parser


def _add_models(parser: Parser) -> None:
    group = parser.add_argument_group("model", "Recognised from the file unless one of these names it.")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--profile", default=None, metavar="NAME", help="auto, or one that 'profiles' lists")
    for flag, profile in MODEL_FLAGS.items():
        one.add_argument(
            f"--{flag}", dest="profile", action="store_const", const=profile, default=None, help=f"--profile {profile}"
        )
