"""The last lines of a run: the file, what is in it, how close it is, and the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..planning.loading import find_folder
from ..planning.profiles import get_profile
from ..reports.report import Report
from ..reports.wording import describe_errors, describe_weights
from ..text import counted, megabytes

LOADERS = {
    "diffusion_models": "Load Diffusion Model reads it from models/diffusion_models",
    "text_encoders": "Load CLIP reads it from models/text_encoders",
    "checkpoints": "Load Checkpoint reads it from models/checkpoints",
    None: "ComfyUI's loader for this kind of model reads it",
}
"""What ComfyUI loads a file with, by its kind of model folder."""


def result_lines(report: Report, target: Path) -> Iterator[str]:
    """A finished run in a few lines of at most 80 columns, names aside."""
    totals = report.totals
    share = f", {totals.bytes_after / totals.bytes_before:.0%} of {megabytes(totals.bytes_before)} MB"
    yield f"{target}: {megabytes(totals.bytes_after)} MB{share if totals.bytes_before else ''}"
    formats = Counter(layer.format for layer in report.layers)
    yield report.count_layers()
    yield f"{report.profile}: " + ", ".join(f"{counted(count, 'layer')} in {name}" for name, count in formats.items())
    yield from [*describe_errors(totals.pairs), *describe_weights(totals.pairs)]
    if totals.fell_back:
        yield f"{counted(totals.fell_back, 'layer')} fell back to nearest"
    yield f"{report.seconds:.1f} s. Next: {_next_step(report)}."


def _next_step(report: Report) -> str:
    return LOADERS[find_folder(get_profile(report.profile), (kept.name for kept in report.kept))]
