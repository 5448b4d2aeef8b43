"""The commands that look: what is in a file, how two files differ, which profiles there are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ..calibration.calibration import Calibration
from ..calibration.file import is_calibration
from ..device import AUTO_DEVICE, choose_device
from ..planning.machine import Machine, detect_machine, word_way
from ..planning.profiles import get_profile, profile_names
from ..planning.recommendation import FormatRow, list_formats
from ..reports.comparison import Comparison, Difference, compare_files
from ..reports.inspection import Inspection, inspect_file
from ..reports.inspection_text import inspection_lines
from ..reports.model_card import write_model_card
from ..text import dimensions, percent, shortened, table
from .bar import progress_bar
from .console import PROGRAM, Parser, say_lines


def inspect(argv: Sequence[str]) -> int:
    """``inspect FILE [--json | --model-card]``; gives the exit code."""
    parser = Parser(prog=f"{PROGRAM} inspect", description="Show what is in a checkpoint, layer by layer.")
    parser.add_argument("file", metavar="FILE", help="FILE.safetensors, or FILE.safetensors.index.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model-card", action="store_true", help="print a Markdown text for a shared file")
    given = parser.given(argv)
    if is_calibration(given["file"]):
        say_lines(_calibration_lines(Calibration.load(given["file"]), given["json"]))
        return 0
    found = inspect_file(given["file"])
    if given["model_card"]:
        say_lines(write_model_card(found).split("\n"))
    else:
        say_lines(_json_lines(found) if given["json"] else inspection_lines(found))
    return 0


def compare(argv: Sequence[str]) -> int:
    """``compare FLOAT QUANTIZED [--json] [--quiet]``; gives the exit code."""
    parser = Parser(prog=f"{PROGRAM} compare", description="Show the weight error of each layer, and in total.")
    parser.add_argument("float", metavar="FLOAT", help="the model as it was")
    parser.add_argument("quantized", metavar="QUANTIZED", help="the model made of it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.given(argv)
    with progress_bar(given["quiet"]) as progress:
        found = compare_files(given["float"], given["quantized"], progress)
    say_lines(_json_lines(found) if given["json"] else _comparison_lines(found))
    return 0


def profiles(argv: Sequence[str]) -> int:
    """``profiles [NAME]``; gives the exit code."""
    parser = Parser(prog=f"{PROGRAM} profiles", description="List the model profiles, or the rules of one.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a profile")
    given = parser.given(argv)
    say_lines(_profile_lines(given["name"]) if "name" in given else _profile_list())
    return 0


def formats(argv: Sequence[str]) -> int:
    """``formats [--device NAME]``; gives the exit code."""
    parser = Parser(prog=f"{PROGRAM} formats", description="List the formats, and how this machine runs them.")
    parser.add_argument("--device", metavar="NAME", help="the device of PyTorch that models run on (default: auto)")
    given = parser.given(argv)
    say_lines(_format_lines(detect_machine(choose_device(given.get("device", AUTO_DEVICE)))))
    return 0


def _format_lines(machine: Machine) -> Iterator[str]:
    head = ("format", "bytes", "nearest", "calibrated", machine.title)
    yield from table([head, *map(_format_row, list_formats(machine))], right=frozenset({1, 2, 3}))
    yield ""
    yield "bytes: of a weight. nearest, calibrated: closeness in dB on the shipped model."


def _format_row(row: FormatRow) -> tuple[str, ...]:
    known = row.closeness
    closeness = ("-", "-") if known is None else (f"{known.nearest:.1f}", f"{known.calibrated:.1f}")
    return row.name, f"{row.bytes_per_weight:.2f}", *closeness, word_way(row.way)


def _calibration_lines(calibration: Calibration, as_json: bool) -> list[str]:
    if not as_json:
        return ["This is a calibration, for --calibration; it holds no model.", *calibration.summary().splitlines()]
    counts = {layer: sample.count for layer, sample in calibration.samples.items()}
    fields = {
        "kind": "calibration",
        "rows_seen": counts,
        "shared": calibration.shared,
        "sensitivities": calibration.sensitivities,
        "unrecorded": calibration.unrecorded,
    }
    return json.dumps(fields, indent=1, allow_nan=False).split("\n")


def _json_lines(found: Inspection | Comparison) -> list[str]:
    return json.dumps(found.to_dict(), indent=1, allow_nan=False).split("\n")


def _comparison_lines(found: Comparison) -> Iterator[str]:
    head = ("layer", "format", "shape", "weight error", "dB")
    yield from table([head, *map(_difference_row, found.layers)], right=frozenset({2, 3, 4}))
    yield ""
    if found.changed:
        yield from table([_difference_row(row) for row in found.changed], right=frozenset({2, 3, 4}))
        yield f"not quantized, and not the same: {len(found.changed)} tensors"
    lists = {"missing": found.missing, "extra": found.extra, "different shape": found.mismatched}
    yield from (f"{what} ({len(names)}): {shortened(names)}" for what, names in lists.items() if names)
    worst = max(found.layers, key=lambda layer: layer.error, default=None)
    text = f"{len(found.layers)} layers quantized, {found.same} tensors the same; "
    mean, total = percent(found.mean_error), percent(found.total_error)
    text += f"weight error {mean} (root mean square of layers), {total} (all weights)"
    yield text + (f", at worst {percent(worst.error)} ({worst.name})" if worst else "")


def _difference_row(row: Difference) -> tuple[str, ...]:
    noise = "-" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
    return row.name, row.format, dimensions(row.shape), percent(row.error, 3), noise


def _profile_list() -> Iterator[str]:
    found = [get_profile(name) for name in profile_names()]
    yield from table([(profile.name, profile.kind.replace("_", " "), profile.title) for profile in found])


def _profile_lines(name: str) -> Iterator[str]:
    profile = get_profile(name)
    yield f"{profile.name}: {profile.title}"
    yield "The first rule whose expression is found in a layer's name decides; layers that none names are quantized."
    yield ""
    for rule in profile.rules:
        yield f"{rule.action:<8}  {rule.pattern}"
        yield f"          {rule.reason} [{rule.source}]"
