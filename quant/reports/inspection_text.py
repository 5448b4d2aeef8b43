"""An inspection as text, for the command line and for the node's report."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..formats import BLOCKWISE
from ..text import clipped, dimensions, megabytes, table
from .inspection import Entry, Inspection

MOST_TEXT = 60


def inspection_lines(found: Inspection) -> Iterator[str]:
    """A line for each layer and tensor, then totals, metadata, provenance and obstacles."""
    head = ("name", "format", "shape", "scale", "MB", "")
    yield from table([head, *map(_entry_row, found.entries)], right=frozenset({2, 3, 4}))
    yield ""
    yield from _total_lines(found)
    yield f"total: {megabytes(found.nbytes)} MB, recognised as {found.profile}"
    for key, text in found.metadata.items():
        yield f"metadata {clipped(key, MOST_TEXT)}: {clipped(text, MOST_TEXT)}"
    yield from _made_lines(found)
    yield from (f"disagreement: {text}" for text in found.disagreements)
    if found.refusal:
        yield f"it cannot be quantized for ComfyUI: {found.refusal}"
    if found.obstacles:
        yield "ComfyUI alone does not load this file as it is meant:"
        yield from (f"  {text}" for text in found.obstacles)
    else:
        yield "ComfyUI loads every layer without a pack"


def _total_lines(found: Inspection) -> Iterator[str]:
    """A line for each format, with its name in the file if that is another one."""
    for (shown, stored), entries in found.by_format().items():
        also = f" ({clipped(stored, MOST_TEXT)} in the file)" if stored != shown else ""
        needs = f" (needs {found.needs[stored]})" if stored in found.needs else ""
        nbytes = sum(entry.nbytes for entry in entries)
        yield f"{len(entries)} x {clipped(shown, MOST_TEXT)}{also}: {megabytes(nbytes)} MB{needs}"


def _made_lines(found: Inspection) -> Iterator[str]:
    provenance = found.provenance
    if provenance is None:
        yield "not made by this pack, or its metadata is gone"
        return
    digest = provenance.source_sha256
    source = "a loaded model" if digest is None else f"the file with SHA-256 {digest}"
    yield f"made by calibrated-rounding {provenance.version} from {source}"
    yield f"recipe: {json.dumps(dict(provenance.recipe), sort_keys=True)}"


def _entry_row(entry: Entry) -> tuple[str, ...]:
    marks = {
        f"rotated in groups of {entry.group}": entry.group is not None,
        f"in {'blocks' if entry.format == BLOCKWISE else 'groups'} of {entry.block}": entry.block is not None,
        f"a bank of {entry.experts} experts{'' if entry.quantized else ', kept'}": entry.experts is not None,
        "multiplied in 16 bits": entry.full_precision,
        "static input scale": entry.input_scale,
    }
    scale = "" if entry.scale is None else dimensions(entry.scale)
    notes = ", ".join(text for text, given in marks.items() if given)
    return (
        entry.name,
        clipped(entry.shown_format, MOST_TEXT),
        dimensions(entry.shape),
        scale,
        megabytes(entry.nbytes),
        notes,
    )
