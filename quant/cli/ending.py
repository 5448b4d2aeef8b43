"""The last lines of a run: the file, what is in it, how close it is, and the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..layer.layer_errors import ErrorPair
from ..planning.profiles import Kind, get_profile
from ..reports.report import TITLES, Report
from ..text import counted, megabytes

LOADERS: dict[Kind, str] = {
    "diffusion": "Load Diffusion Model reads it from models/diffusion_models",
    "text_encoder": "Load CLIP reads it from models/text_encoders",
    "any": "ComfyUI's loader for this kind of model reads it",
}
"""What ComfyUI loads a file of each kind with."""
CHECKPOINT = "Load Checkpoint reads it from models/checkpoints"
DECODERS = ("first_stage_model.", "vae.")
"""Prefixes of a decoder, which only all-in-one checkpoints hold."""


def result_lines(report: Report, target: Path) -> Iterator[str]:
    """A finished run in a few lines of at most 80 columns, names aside."""
    totals = report.totals
    share = f", {totals.bytes_after / totals.bytes_before:.0%} of {megabytes(totals.bytes_before)} MB"
    yield f"{target}: {megabytes(totals.bytes_after)} MB{share if totals.bytes_before else ''}"
    formats = Counter(layer.format for layer in report.layers)
    yield f"{report.profile}: " + ", ".join(f"{counted(count, 'layer')} in {name}" for name, count in formats.items())
    yield "; ".join(_rest(report))
    yield from _errors(report)
    yield f"{report.seconds:.1f} s. Next: {_next_step(report)}."


def _rest(report: Report) -> Iterator[str]:
    layers = [kept for kept in report.kept if kept.is_layer]
    if layers:
        yield f"{counted(len(layers), 'layer')} kept ({megabytes(sum(kept.bytes_after for kept in layers))} MB)"
    others = sum(kept.bytes_after for kept in report.kept if not kept.is_layer)
    yield f"norms and biases {megabytes(others)} MB"


def _errors(report: Report) -> Iterator[str]:
    totals = report.totals
    if totals.output_w8a8 is not None:
        yield f"{TITLES['output_w8a8']} {_against_nearest(totals.output_w8a8)}"
        if totals.fell_back:
            yield f"{counted(totals.fell_back, 'layer')} fell back to nearest"
    elif totals.projected is not None:
        yield f"{TITLES['projected']} {_against_nearest(totals.projected)}"
    elif totals.weight is not None:
        yield f"{TITLES['weight']} {_against_nearest(totals.weight)}"


def _against_nearest(pair: ErrorPair) -> str:
    if pair.error == pair.nearest or not pair.nearest:
        return f"{pair.error:.4f}"
    change = pair.error / pair.nearest - 1
    return f"{pair.error:.4f}, {abs(change):.0%} {'below' if change < 0 else 'above'} nearest's {pair.nearest:.4f}"


def _next_step(report: Report) -> str:
    if any(kept.name.startswith(DECODERS) for kept in report.kept):
        return CHECKPOINT
    return LOADERS[get_profile(report.profile).kind]
