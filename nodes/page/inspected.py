"""What is known of a model file: its formats and what ComfyUI does with them on this machine, and how it was made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import comfy.quant_ops

from ...quant import QuantError
from ...quant.calibration.calibration import Calibration
from ...quant.calibration.file import CALIBRATION_KEY, is_calibration
from ...quant.files.partial import PartialFile, find_needed
from ...quant.formats import BLOCKWISE, FORMATS
from ...quant.formats.stored import STORED_FORMATS
from ...quant.notices import Notice, notice
from ...quant.planning.loading import find_folder
from ...quant.planning.machine import note_way
from ...quant.planning.profiles import get_profile
from ...quant.reports.inspection import Inspection, inspect_file, inspect_partial
from ...quant.reports.model_card import write_model_card
from ...quant.reports.provenance import Provenance
from ..host.machine import describe_machine

MOST_OBSTACLES = 4


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe any file for the page.

    Returns:
        ``title``, ``bytes``, ``formats`` (rows of `_format_rows`), ``kept`` (count and bytes), ``recipe`` (settings
        that differ from the defaults, None if unknown), ``card`` (`write_model_card`), ``made`` and ``notices``.
    """
    size = _size(path)
    try:
        if is_calibration(Path(path)):
            return _say(size, notice("is_calibration", text=Calibration.load(path).summary()))
        inspection = inspect_file(path)
    except QuantError as error:
        return _say(size, notice("refused", text=str(error)))
    return _describe(size, inspection)


def describe_dropped(file: PartialFile) -> dict[str, Any]:
    """Describe a file that a page holds, in no folder of this machine.

    Returns:
        As `describe_file`; while bytes are missing that this needs, only ``send``: the ranges to send instead.
    """
    try:
        needed = find_needed(file)
        if needed:
            return {"send": needed}
        inspection = inspect_partial(file)
    except QuantError as error:
        return _say(file.size, notice("refused", text=str(error)))
    if CALIBRATION_KEY in inspection.metadata:
        return _say(file.size, notice("dropped_calibration", file=file.path.name))
    return _describe(file.size, inspection, _outside(inspection))


def _say(size: int, *notices: Notice) -> dict[str, Any]:
    """Describe a file of which nothing but some notices is known."""
    unknown = {"title": "", "formats": [], "kept": None, "recipe": None, "card": "", "made": None}
    return unknown | {"bytes": size, "notices": [entry.to_dict() for entry in notices]}


def _describe(size: int, inspection: Inspection, more: Iterable[Notice] = ()) -> dict[str, Any]:
    """Describe an inspected file; ``more``: what is to be known first."""
    kept = [entry for entry in inspection.entries if not entry.quantized]
    return _say(size, *more, *_obstacles(inspection), *_verdicts(inspection)) | {
        "title": get_profile(inspection.profile).title,
        "formats": list(_format_rows(inspection)),
        "kept": {"count": len(kept), "bytes": sum(entry.nbytes for entry in kept)},
        "recipe": inspection.provenance and inspection.provenance.list_settings(),
        "card": write_model_card(inspection),
        "made": _describe_making(inspection.provenance),
    }


def _outside(inspection: Inspection) -> Iterator[Notice]:
    """What to know of a file in no model folder."""
    folder = find_folder(get_profile(inspection.profile), (entry.name for entry in inspection.entries))
    yield notice("not_in_any_folder") if folder is None else notice("not_in_folder", folder=folder)
    if inspection.unread:
        yield notice("scales_not_read", layers=inspection.unread)


def _describe_making(provenance: Provenance | None) -> dict[str, Any] | None:
    if provenance is None:
        return None
    return {
        "version": provenance.version,
        "source": provenance.source_sha256,
        "patches": provenance.merged_patches + len(provenance.merged_first),
    }


def _format_rows(inspection: Inspection) -> Iterator[dict[str, Any]]:
    """For each format of quantized layers: its name, number of layers and bytes."""
    rows = []
    for (name, _), entries in inspection.by_format().items():
        sizes = [entry.nbytes for entry in entries if entry.quantized]  # a norm may be in FP8, too
        rows += [{"format": name, "layers": len(sizes), "bytes": sum(sizes)}] if sizes else []
    yield from sorted(rows, key=lambda row: -row["bytes"])


def _verdicts(inspection: Inspection) -> Iterator[Notice]:
    """What ComfyUI does on this machine with each format in the file."""
    layers = [entry for entry in inspection.entries if entry.quantized]
    if not layers:
        yield notice("not_quantized")
        return
    encoder = get_profile(inspection.profile).kind == "text_encoder"
    for name in dict.fromkeys(entry.format for entry in layers):
        alike = [entry for entry in layers if entry.format == name]
        shown = list(dict.fromkeys(entry.shown_format for entry in alike))
        verdict = _judge_format(name, shown, slow=encoder or all(entry.full_precision for entry in alike))
        if verdict is not None:
            yield verdict


def _judge_format(name: str, shown: Sequence[str], *, slow: bool) -> Notice | None:
    """Say what ComfyUI does with a format.

    Args:
        name: The marker's.
        shown: Names of the layers with it for people to read.
        slow: ComfyUI is asked to multiply in 16 bits.

    Returns:
        The notice; None for a format that is an obstacle already.
    """
    known = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
    own = next((fmt for fmt in FORMATS.values() if fmt.comfyui_name == name), None)
    if name not in STORED_FORMATS:
        return None
    if name not in known and name != BLOCKWISE:
        return notice("format_unknown_here", format=", ".join(shown))
    if own is None:
        return notice("loads_here", format=", ".join(shown))
    machine = describe_machine()
    return note_way((machine.without_products() if slow else machine).runs(own), shown)


def _obstacles(inspection: Inspection) -> Iterator[Notice]:
    texts = list(dict.fromkeys(inspection.obstacles))
    for text in texts[:MOST_OBSTACLES]:
        yield notice("obstacle", text=text)
    if len(texts) > MOST_OBSTACLES:
        yield notice("more_obstacles", count=len(texts) - MOST_OBSTACLES)
    if inspection.refusal:
        yield notice("obstacle", text=inspection.refusal)


def _size(path: str | os.PathLike[str]) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0
