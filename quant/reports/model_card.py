"""A model card: the Markdown text that goes with a quantized file that is shared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..planning.profiles import get_profile
from ..text import counted, markdown_table, megabytes, printable
from .inspection import Inspection
from .provenance import Provenance
from .wording import describe_errors, describe_weights


def write_model_card(inspection: Inspection) -> str:
    """Write what a file is, how it was made, what it needs, and how close it is, all of it read from the file."""
    provenance = inspection.provenance
    sections = (_head(inspection), _making(provenance), _needs(inspection), _closeness(provenance))
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _head(inspection: Inspection) -> Iterator[str]:
    layers = [entry for entry in inspection.entries if entry.quantized]
    yield f"# {printable(Path(inspection.path).name)}"
    yield ""
    yield f"{get_profile(inspection.profile).title}, {counted(len(layers), 'layer')} quantized."
    yield ""
    rows = [(name, str(row["count"]), megabytes(row["bytes"])) for name, row in inspection.totals().items()]
    total = ("total", str(len(inspection.entries)), megabytes(inspection.nbytes))
    yield from markdown_table([("stored as", "layers and tensors", "MB"), *rows, total], frozenset({1, 2}))


def _making(provenance: Provenance | None) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    if provenance is None:
        yield "The file does not say how it was made."
        return
    digest = provenance.source_sha256
    source = "a model that was loaded in ComfyUI" if digest is None else f"the file with SHA-256 `{digest}`"
    yield f"- By calibrated-rounding {provenance.version} from {source}."
    for name, value in provenance.list_settings().items():
        yield f"- {name}: `{printable(value if isinstance(value, str) else json.dumps(value))}`"
    if provenance.merged_patches:
        yield f"- Patches, such as LoRAs, that were merged when it was saved: {provenance.merged_patches}."
    if provenance.merged_first:
        yield f"- Patches of {counted(len(provenance.merged_first), 'weight')} were merged before quantizing."
    yield "- All other settings are the defaults; the whole recipe is in the file's header."


def _needs(inspection: Inspection) -> Iterator[str]:
    yield "## What it needs"
    yield ""
    for name, needs in inspection.needs.items():
        yield f"- {name}: {needs}"
    if not inspection.needs:
        yield "- ComfyUI; no other program."
    for obstacle in dict.fromkeys(inspection.obstacles):
        yield f"- {printable(obstacle)}"


def _closeness(provenance: Provenance | None) -> Iterator[str]:
    yield "## How close it is"
    yield ""
    measured = None if provenance is None else provenance.measurement
    if provenance is None or measured is None:
        yield "The file does not say how close it is."
        return
    yield f"- {megabytes(measured.bytes_before)} MB before, {megabytes(measured.bytes_after)} MB after."
    for text in (*describe_errors(measured.errors), *describe_weights(measured.errors)):
        yield f"- {text}"
    if measured.calibration is not None:
        yield f"- Measured on held-out rows of the calibration with SHA-256 `{printable(measured.calibration)}`."
    if measured.fell_back:
        yield f"- {counted(measured.fell_back, 'layer')} fell back to nearest rounding."
    if provenance.merged_patches:
        yield "- Measured before patches were merged at saving; ComfyUI rounds the layers that they change to nearest."
    for text in measured.warnings:
        yield f"- {printable(text)}"
    yield "- These are errors of layers. Pictures were not compared."
