"""Other spellings of the command line, convert-to-quant's and older ones of this pack: one table of what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RecipeError
from ..recipe import Recipe

COMPATIBLE_FORMAT = "float8_e4m3fn"
"""convert-to-quant's own default: the format of a command line that has only flags of its kind."""


@dataclass(frozen=True)
class Spelling:
    """Another name for the option of a setting."""

    setting: str


@dataclass(frozen=True)
class Preset:
    """A flag for one value of a setting."""

    setting: str
    value: str


@dataclass(frozen=True)
class FormatPart:
    """One of several options that name a format together; see `find_aliased_format`."""

    name: str
    help: str
    values: tuple[Any, ...] = ()
    """Name of the option's value; empty for a flag."""


@dataclass(frozen=True)
class Ignored:
    """A flag without an effect."""

    help: str


Alias = Spelling | Preset | FormatPart | Ignored

BLOCK_SIZE = FormatPart("block_size", "Side of INT8 blocks; with --scaling-mode block.", (128, 64))
OWN_FORMAT = Ignored("Accepted for compatibility: files are always in ComfyUI's own format, with markers and header.")

ALIASES: Mapping[str, Alias] = {
    "--exclude-layers": Spelling("exclude"),
    "--override": Spelling("overrides"),
    "--heur": Spelling("heuristics"),
    "--output-dtype": Spelling("keep_dtype"),
    "--convrot-group-size": Spelling("rotation_group"),
    "--num-iter": Spelling("svd.iterations"),
    "--full-matrix": Spelling("svd.full"),
    "--manual-seed": Spelling("seed"),
    "--simple": Preset("rounding", "nearest"),
    "--fp8": Preset("format", "float8_e4m3fn"),
    "--int8": FormatPart("int8", "INT8: int8_row, or as --scaling-mode says."),
    "--convrot": FormatPart("convrot", "INT8 with rotated inputs (int8_convrot)."),
    "--mxfp8": FormatPart("mxfp8", "MXFP8 (mxfp8)."),
    "--nvfp4": FormatPart("nvfp4", "NVFP4 (nvfp4)."),
    "--scaling-mode": FormatPart(
        "scaling_mode", "Which weights share a scale; there is no block-wise FP8.", ("tensor", "row", "block")
    ),
    "--block-size": BLOCK_SIZE,
    "--group-size": BLOCK_SIZE,
    "--comfy-quant": OWN_FORMAT,
    "--save-quant-metadata": OWN_FORMAT,
    "--low-memory": Ignored("Accepted for compatibility: one layer is held at a time anyway."),
    "--anima": Preset("profile", "anima"),
    "--distillation-large": Preset("profile", "chroma"),
    "--distillation-small": Preset("profile", "chroma_small"),
    "--flux2": Preset("profile", "flux2"),
    "--hunyuan": Preset("profile", "hunyuan_video15"),
    "--ltxv2": Preset("profile", "ltx2"),
    "--mistral": Preset("profile", "mistral"),
    "--nerf-large": Preset("profile", "nerf_large"),
    "--nerf-small": Preset("profile", "nerf_small"),
    "--qwen": Preset("profile", "qwen_image"),
    "--radiance": Preset("profile", "radiance"),
    "--t5xxl": Preset("profile", "t5xxl"),
    "--wan": Preset("profile", "wan"),
    "--zimage": Preset("profile", "zimage"),
    "--zimage-l": Preset("profile", "zimage"),
    "--zimage-s": Preset("profile", "zimage_small"),
    "--zimage-refiner": Preset("profile", "zimage_refiner"),
}

FORMAT_PARTS: Mapping[tuple[str, str, int | None], str] = {
    ("fp8", "tensor", None): "float8_e4m3fn",
    ("fp8_e5m2", "tensor", None): "float8_e5m2",
    ("int8", "row", None): "int8_row",
    ("int8", "tensor", None): "int8_tensor",
    ("int8", "block", 128): "int8_blockwise",
    ("int8", "block", 64): "int8_blockwise_64",
    ("convrot", "row", None): "int8_convrot",
    ("mxfp8", "block", None): "mxfp8",
    ("nvfp4", "block", None): "nvfp4",
}
"""Kind of numbers, scaling mode and block size (None: no choice) -> format; the first that fits is meant."""

KINDS: Mapping[frozenset[str], str | None] = {
    frozenset(): None,
    frozenset({"int8"}): "int8",
    frozenset({"convrot"}): "convrot",
    frozenset({"int8", "convrot"}): "convrot",
    frozenset({"mxfp8"}): "mxfp8",
    frozenset({"nvfp4"}): "nvfp4",
}
"""Flags -> the kind of numbers that they ask for together; other sets contradict themselves."""


def list_spellings(setting: str) -> tuple[str, ...]:
    """Other names of a setting's option."""
    return tuple(name for name, alias in ALIASES.items() if alias == Spelling(setting))


def get_target(name: str) -> str:
    """Destination in the parser of an alias that is an option of its own."""
    alias = ALIASES[name]
    return alias.name if isinstance(alias, FormatPart) else name


def choose_default_format(args: Mapping[str, Any]) -> str:
    """The format of a command line that names none."""
    compatible = (name for name, alias in ALIASES.items() if isinstance(alias, (FormatPart, Ignored)))
    return COMPATIBLE_FORMAT if any(get_target(name) in args for name in compatible) else Recipe().format


def find_aliased_format(args: Mapping[str, Any], default: str) -> tuple[str, str] | None:
    """Find the format that the options of `FORMAT_PARTS` name.

    Args:
        args: The command line's values.
        default: The format that a scaling mode or block size without a kind refines.

    Returns:
        One of the options and the format; None if none of the options is used.

    Raises:
        RecipeError: if there is no such format.
    """
    named = [name for name, alias in ALIASES.items() if isinstance(alias, FormatPart) and alias.name in args]
    if not named:
        return None
    flags = frozenset(args.keys() & frozenset().union(*KINDS))
    if flags not in KINDS:
        raise RecipeError(f"{' and '.join(f'--{flag}' for flag in sorted(flags))} exclude each other.")
    mode, size, kind = args.get("scaling_mode"), args.get("block_size"), KINDS[flags]
    if kind is None:
        parts = next(((kind, mode) for (kind, mode, _), name in FORMAT_PARTS.items() if name == default), None)
        if parts is None:
            raise RecipeError(f"--scaling-mode and --block-size do not go with the format {default}; name another.")
        kind, mode = parts[0], mode or parts[1]
    return named[0], _find_format(kind, mode, size)


def _find_format(kind: str, mode: str | None, size: int | None) -> str:
    rows = [(s, name) for (k, m, s), name in FORMAT_PARTS.items() if k == kind and mode in (None, m)]
    if not rows:
        known = ", ".join(f"{k} {m} ({name})" for (k, m, _), name in FORMAT_PARTS.items())
        raise RecipeError(f"--scaling-mode {mode} does not exist for {kind}; there are: {known}.")
    if size is None or rows[0][0] is None:
        return rows[0][1]
    fitting = [name for s, name in rows if s == size]
    if not fitting:
        raise RecipeError(f"--block-size {size} does not exist; there are: {', '.join(str(s) for s, _ in rows)}.")
    return fitting[0]
