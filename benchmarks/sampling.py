"""Latents of quantized models against the float model's, in a real ComfyUI on the CPU, at held-out seeds.

    python benchmarks/sampling.py [--json FILE] [--seeds N] [--convert-to-quant PATH]

The shipped digits model is quantized in each format with each rounding method, and by convert-to-quant (PyPI; ``ctq``
on the PATH, or --convert-to-quant): with --simple, and with its learned rounding at its defaults, on the same layers.
ComfyUI's own UNETLoader loads every file, and the model is sampled at fixed seeds: all ten classes, 20 steps of euler,
scheduler simple, cfg 3. The ComfyUI is found as in the tests: COMFYUI_PATH, the folder that the pack is installed in,
or ~/ComfyUI. "calibrated" was recorded by the pack's own node in two runs at other seeds. In "chosen", measured errors
and sensitivities select the layers instead of the profile, in no more bytes. "auto" mixes INT8, 6 and 4 bits in 0.65
of the bytes of the FP8 file.

int8_blockwise is multiplied in INT8, as on a GPU with Triton; a CPU by itself would dequantize its weights. Formats
whose inputs a card with FP8 units quantizes are sampled a second time as this card samples them, with ComfyUI's
--supports-fp8-compute ("FP8 units"), also with weights that are marked full_precision_matrix_mult.

The table has the mean over seeds of each latent's PSNR, averaged over the classes, whose peak is the range of the float
model's latents, its standard error over the seeds, and the relative error ||quantized - float|| / ||float|| over all
latents, also relative to nearest rounding of the same format. Without a ComfyUI every value is empty, without
convert-to-quant its values are.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import _convert_to_quant as converter
from _process import race
from _table import Row, arguments, emit
from calibrated_rounding.kernels import backend
from calibrated_rounding.nodes.compare.latents import measure_closeness, value_range
from calibrated_rounding.quant import Recipe, SvdSettings, plan_file, quantize_file
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.formats import FORMATS as PACK_FORMATS
from calibrated_rounding.quant.recipe import AUTO
from calibrated_rounding.tools.comfyui import FP8_COMPUTE, Host, HostMissing, example_model, find_host
from safetensors.torch import load_file
from torch import Tensor

FORMATS = tuple(name for name in PACK_FORMATS if name != "int8_blockwise_64")
ROUNDINGS = {
    "nearest": {"rounding": "nearest"},
    "svd": {"rounding": "svd", "svd": SvdSettings()},
    "calibrated": {"rounding": "calibrated"},
}
CHOSEN = "calibrated, chosen"
CONVERTED = {f"{converter.PACKAGE}, nearest": converter.NEAREST, f"{converter.PACKAGE}, learned": ()}
"""convert-to-quant's methods, and its options for them."""

METHODS = {fmt: (*ROUNDINGS, CHOSEN, *(CONVERTED if fmt in converter.FORMATS else ())) for fmt in FORMATS}

FP8_UNITS = "FP8 units"
INPUTS_IN_FP8 = ("float8_e4m3fn",)
"""Formats whose inputs ComfyUI quantizes on a card with FP8 units; --supports-fp8-compute does it on a CPU."""
IN_FLOAT = "calibrated, full_precision_matrix_mult"
METHODS |= {f"{fmt}, {FP8_UNITS}": (*METHODS[fmt], IN_FLOAT) for fmt in INPUTS_IN_FP8}

EVERY_METHOD = ("nearest", "svd", "calibrated", "chosen", "in float", converter.PACKAGE)
"""Short names of all methods, for --methods."""

MIXED = "auto, calibrated"
MIXED_FORMATS = ("int8_convrot", "w6a8", "w4a8")
MIXED_SHARE = 0.65
"""Bytes of the mixed file, relative to the bytes of the float8_e4m3fn file."""

GAIN = {"float8_e4m3fn": 8.0, "float8_e5m2": 8.0, "int8_convrot": 3.0}
"""Targets in decibels for calibrated above nearest."""
MIXED_GAIN = 6.0
"""Target in decibels for the mixed file above float8_e4m3fn rounded to nearest, on the card that brings it closer."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=32, help="samples of each class (default 32)")
    parser.add_argument("--methods", default=",".join(EVERY_METHOD), help="names of methods, nearest among them")
    converter.add_argument(parser)
    options = parser.parse_args()
    keep_methods(options.methods.split(","))
    os.environ.setdefault(backend.VARIABLE, "reference")
    title = "Sampled latents against the float model's"
    try:
        host = find_host()
    except HostMissing as reason:
        print(f"Nothing was measured: {reason}.")
        emit(rows_of({}), options.json, title)
        return
    rows = [
        Row(case="all", metric="seeds", value=options.seeds, unit="samples of each class"),
        *rows_of(sample_all(host, options.seeds, options.convert_to_quant)),
    ]
    versions = read_versions(host) | converter.read_version(options.convert_to_quant)
    emit(rows, options.json, title, extra_versions=versions)


def keep_methods(names: Sequence[str]) -> None:
    """Leave out the methods that are not named."""
    short = {CHOSEN: "chosen", IN_FLOAT: "in float"} | {method: converter.PACKAGE for method in CONVERTED}
    for fmt, methods in METHODS.items():
        METHODS[fmt] = tuple(method for method in methods if short.get(method, method) in names)


def read_versions(host: Host) -> dict[str, str]:
    """Read the versions of ComfyUI's environment, which may differ from this one."""
    return {"ComfyUI": host.version, **host.call("benchmarks._inside:read_versions")}


def sample_all(host: Host, seeds: int, executable: str | None) -> dict[str, Tensor]:
    """Quantize the model in every way, and sample every file.

    Args:
        host: The ComfyUI.
        seeds: Number of seeds.
        executable: convert-to-quant's, None if it is not installed.

    Returns:
        Latents ``[seeds, 10, 16, 1, 8, 8]`` by case, and of the float model ("float").
    """
    source = example_model("digits_wan.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
        recorded = host.call("benchmarks._inside:calibrate", source=source, table=table, folder=folder)
        paths = {"float": source}
        paths |= quantize_all(source, Path(folder), Calibration.load(recorded["path"]))
        converts = any(method in CONVERTED for methods in METHODS.values() for method in methods)
        if executable is not None and converts:
            paths |= convert_all(source, Path(folder), executable)
        in_fp8 = {case: path for case, path in paths.items() if case.startswith(INPUTS_IN_FP8)}
        emulated = {case: path for case, path in paths.items() if IN_FLOAT not in case}
        sampled = _sample(host, emulated, table, seeds)
        for case, latents in _sample(host, in_fp8, table, seeds, FP8_COMPUTE).items():
            fmt, method = case.split(", ", 1)
            sampled[case_of(f"{fmt}, {FP8_UNITS}", method)] = latents
        return sampled


def _sample(host: Host, paths: Mapping[str, Path], table: Tensor, seeds: int, *options: str) -> dict[str, Tensor]:
    inputs = {"paths": dict(paths), "table": table, "seeds": seeds}
    return host.call("benchmarks._inside:sample_files", timeout=3 * 3600, options=options, **inputs)


def quantize_all(source: Path, folder: Path, calibration: Calibration) -> dict[str, Path]:
    """Quantize in every format with every method of the pack; returns the files by case."""
    recipes = {
        case_of(f, method): Recipe(format=f, **how)
        for f in FORMATS
        for method, how in ROUNDINGS.items()
        if method in METHODS[f]
    }
    recipes |= {case_of(f, CHOSEN): choose_layers(source, f) for f in FORMATS if CHOSEN in METHODS[f]}
    recipes[MIXED] = Recipe(
        format=AUTO,
        formats=MIXED_FORMATS,
        target_share=MIXED_SHARE * share_of(source, "float8_e4m3fn"),
        rounding="calibrated",
    )
    recipes |= {
        case_of(f, IN_FLOAT): Recipe(format=f, rounding="calibrated", full_precision_matrix_mult=True)
        for f in INPUTS_IN_FP8
        if IN_FLOAT in METHODS[f"{f}, {FP8_UNITS}"]
    }
    paths = {case: target_of(folder, case) for case in recipes}
    for case, recipe in recipes.items():
        quantize_file(source, paths[case], recipe, statistics=calibration)
    return paths


def choose_layers(source: Path, fmt: str) -> Recipe:
    """A recipe that selects layers by measured error instead of the profile, in as many bytes."""
    return Recipe(format=AUTO, formats=(fmt,), target_share=share_of(source, fmt), rounding="calibrated")


def share_of(source: Path, fmt: str) -> float:
    """Compute the bytes of a file in one format, relative to the bytes of the float file."""
    plan = plan_file(source, Recipe(format=fmt))
    return plan.nbytes / plan.source_nbytes


def convert_all(source: Path, folder: Path, executable: str) -> dict[str, Path]:
    """Quantize the same layers with convert-to-quant; returns the files by case. Failures are printed."""
    commands, paths = {}, {}
    for fmt in filter(converter.FORMATS.__contains__, FORMATS):
        kept = ["--exclude-layers", match_kept_layers(source, fmt)]
        for method, options in CONVERTED.items():
            case = case_of(fmt, method)
            paths[case] = target_of(folder, case)
            commands[case] = converter.build_command(executable, source, paths[case], fmt, [*kept, *options])
    race(commands, 1)
    # convert-to-quant may end without an error and without a file.
    return {case: path for case, path in paths.items() if path.exists()}


def match_kept_layers(source: Path, fmt: str) -> str:
    """Make a regular expression for the weights that the pack keeps in float."""
    plan = plan_file(source, Recipe(format=fmt))
    return f"^({'|'.join(re.escape(name) for name in plan.kept if name.endswith('.weight'))})$"


def case_of(fmt: str, method: str) -> str:
    return f"{fmt}, {method}"


def target_of(folder: Path, case: str) -> Path:
    return folder / f"{case.replace(', ', '_').replace(' ', '_')}.safetensors"


def rows_of(latents: Mapping[str, Tensor]) -> list[Row]:
    """List the figures of every format and method; values are None without latents."""
    formats = {fmt: compare_all(fmt, latents) for fmt in METHODS}
    rows = [row for fmt, results in formats.items() for row in format_rows(fmt, results)]
    mixed = compare(latents[MIXED], latents["float"]) if MIXED in latents else None
    nearest = [formats[name].get("nearest") for name in ("float8_e4m3fn", f"float8_e4m3fn, {FP8_UNITS}")]
    closest = max((figures for figures in nearest if figures), key=lambda figures: figures.psnr_db, default=None)
    return [*rows, *case_rows(MIXED, mixed, closest, MIXED_GAIN)]


def compare_all(fmt: str, latents: Mapping[str, Tensor]) -> dict[str, Figures]:
    """Compare every method of a format; methods without latents are left out."""
    cases = {method: case_of(fmt, method) for method in METHODS[fmt]}
    return {method: compare(latents[case], latents["float"]) for method, case in cases.items() if case in latents}


def format_rows(fmt: str, results: Mapping[str, Figures]) -> list[Row]:
    nearest = results.get("nearest")
    return [
        row
        for method in METHODS[fmt]
        for row in case_rows(
            case_of(fmt, method), results.get(method), nearest, GAIN.get(fmt) if method == "calibrated" else None
        )
    ]


def case_rows(case: str, here: Figures | None, nearest: Figures | None, target: float | None) -> list[Row]:
    both = here is not None and nearest is not None
    gain = here.psnr_db - nearest.psnr_db if both else None
    reached = None if gain is None or target is None else gain >= target
    ratio = here.relative_error / nearest.relative_error if both else None
    return [
        Row(case=case, metric="mean PSNR of latents", value=here and here.psnr_db, unit="dB"),
        Row(case=case, metric="standard error of PSNR", value=here and here.standard_error, unit="dB"),
        Row(case=case, metric="PSNR above nearest", value=gain, unit="dB", target=target, reached=reached),
        Row(case=case, metric="relative error of latents", value=here and here.relative_error, unit="ratio"),
        Row(case=case, metric="error / nearest", value=ratio, unit="ratio"),
    ]


@dataclass(frozen=True)
class Figures:
    """How close the latents of a quantized model are to the float model's."""

    psnr_db: float
    """Mean over all latents."""
    standard_error: float
    """Of the mean, over the seeds; 0 for one seed."""
    relative_error: float


def compare(latents: Tensor, reference: Tensor) -> Figures:
    """Compare latents ``[seeds, classes, ...]``."""
    peak = value_range(reference)
    by_seed = [
        statistics.mean(measure_closeness(*pair, peak).psnr_db for pair in zip(*seed, strict=True))
        for seed in zip(latents, reference, strict=True)
    ]
    spread = statistics.stdev(by_seed) / len(by_seed) ** 0.5 if len(by_seed) > 1 else 0.0
    return Figures(statistics.mean(by_seed), spread, measure_closeness(latents, reference, peak).relative_error)


if __name__ == "__main__":
    main()
