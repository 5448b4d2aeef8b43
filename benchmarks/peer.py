"""The engine against convert-to-quant (PyPI), the converter that the field uses: the same weights, in one run.

    python benchmarks/peer.py [--json FILE] [--peer PATH] [--weights FILE] [--runs N] [--no-large]

Both run as whole processes from their command lines, in turn, and the table has the median of the runs: wall time with
start-up, and peak resident memory. Errors are computed here from the files that both have written, with the exact
singular directions of the float weights. Both are at their defaults, except for the number k of directions, which is
the peer's default for both (narrow trained layers: a fifth of the width, at least 64). Without the peer (``ctq`` on the
PATH, or --peer) its values are empty. The weights: a synthetic layer of 1024 x 1024, a synthetic file of 2 GB for time
and memory, layers of the shipped digits model and, with --weights, of any trained checkpoint (these once, for errors).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import _peer
from _errors import Errors, Exact
from _process import Usage, race
from _table import Row, arguments, emit
from _weights import save, save_large, synthetic, trained
from torch import Tensor

OURS = (sys.executable, "-m", "calibrated_rounding.quant", "--quiet", "--overwrite", "--device", "cpu")
TOP_P, MAX_K = 0.2, 1280
DIGITS = Path(__file__).parents[1] / "examples" / "models" / "diffusion_models" / "digits_wan.safetensors"


@dataclass(frozen=True)
class Kind:
    """A format, and the projected error that svd is to reach in it, over nearest's."""

    format: str
    svd: float | None = None


KINDS: Mapping[str, Kind] = {
    "FP8": Kind("float8_e4m3fn", 0.60),
    "INT8 row": Kind("int8_row", 0.70),
    "INT8 row, rotated": Kind("int8_convrot"),
}

NEAREST_TIME, SVD_TIME, LARGE_MEMORY = 1.0, 0.25, 0.35
"""To reach, relative to the peer."""

LARGE_MEGABYTES = 700.0
"""To reach, for the 2 GB file."""


@dataclass(frozen=True)
class Contest:
    """Runs both converters on files in ``folder``; ``peer`` is None where there is none."""

    folder: Path
    peer: str | None
    runs: int

    def usages(
        self, source: Path, kind: Kind, ours: Sequence[str], peers: Mapping[str, Sequence[str]]
    ) -> dict[str, Usage]:
        """What "ours" and each of the peer's ways took; who failed is missing."""
        asked = ["-i", str(source), "-o", str(self.target("ours")), "--format", kind.format]
        commands = {"ours": [*OURS, *asked, *ours]}
        if self.peer is not None:
            for name, options in peers.items():
                commands[name] = _peer.command(self.peer, source, self.target(name), kind.format, options)
        for name in commands:
            self.target(name).unlink(missing_ok=True)
        done = race(commands, self.runs)
        # The peer may end without an error where it has written nothing.
        return {name: usage for name, usage in done.items() if self.target(name).exists()}

    def target(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.safetensors"


def main() -> None:
    parser = arguments(__doc__)
    _peer.add_argument(parser)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="also layers of this trained checkpoint")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each command (default 3)")
    parser.add_argument("--no-large", action="store_true", help="leave out the 2 GB file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), options.peer, options.runs)
        rows = layer_rows(contest, "1024 x 1024", {"layer.weight": synthetic((1024, 1024))}, min_k=256)
        for path in filter(None, (DIGITS, options.weights)):
            rows += layer_rows(replace(contest, runs=1), f"trained, {path.stem}", trained(path), min_k=64)
        if not options.no_large:
            rows += large_rows(contest)
    emit(rows, options.json, f"Against {_peer.PACKAGE}", extra_versions=_peer.versions(options.peer))


def layer_rows(contest: Contest, title: str, weights: Mapping[str, Tensor], min_k: int) -> list[Row]:
    """Time, memory and errors of nearest and of svd rounding in every format."""
    print(title, file=sys.stderr)
    source = save(weights, contest.folder / "source.safetensors")
    exact = Exact(weights, TOP_P, min_k)
    directions = ("--top-p", str(TOP_P), "--min-k", str(min_k), "--max-k", str(MAX_K))
    rows = []
    for name, kind in KINDS.items():
        case = f"{title}, {name}"
        nearest = contest.usages(source, kind, ["--simple"], {"peer": _peer.NEAREST})
        before = {who: exact.errors(contest.target(who)) for who in nearest}
        rows += cost_rows(f"{case}, nearest", nearest, NEAREST_TIME)
        rows += error_rows(f"{case}, nearest", before)
        svd = contest.usages(source, kind, ["--rounding", "svd", *directions], {"peer": directions})
        after = {who: exact.errors(contest.target(who)) for who in svd}
        rows += cost_rows(f"{case}, svd", svd, SVD_TIME)
        rows += error_rows(f"{case}, svd", after)
        for who, target in (("ours", kind.svd), ("peer", None)):
            both = who in before and who in after
            gain = after[who].projected / before[who].projected if both else None
            rows.append(at_most(f"{case}, svd", f"projected error / nearest, {who}", gain, "ratio", target))
    return rows


def large_rows(contest: Contest) -> list[Row]:
    """Time and memory of nearest rounding on the 2 GB file, the peer also in its mode for little memory."""
    source = save_large(contest.folder / "large.safetensors")
    rows = []
    for name, kind in KINDS.items():
        case = f"2 GB, {name}, nearest"
        peers = {"peer": _peer.NEAREST, "peer, low memory": [*_peer.NEAREST, "--low-memory"]}
        usages = contest.usages(source, kind, ["--simple"], peers)
        rows += cost_rows(case, usages, NEAREST_TIME, LARGE_MEMORY, LARGE_MEGABYTES)
        thrifty = usages.get("peer, low memory")
        rows += [
            Row(case, "time, peer, low memory", thrifty and thrifty.seconds, "s"),
            Row(case, "peak memory, peer, low memory", thrifty and thrifty.megabytes, "MB"),
        ]
    return rows


def cost_rows(
    case: str,
    usages: Mapping[str, Usage],
    time_ratio: float,
    memory_ratio: float | None = None,
    memory: float | None = None,
) -> list[Row]:
    """Time and memory of ours and of the peer, and their ratios with what they are to reach."""
    ours, peer = usages.get("ours"), usages.get("peer")
    both = ours is not None and peer is not None
    return [
        Row(case, "time, ours", ours and ours.seconds, "s"),
        Row(case, "time, peer", peer and peer.seconds, "s"),
        at_most(case, "time, ours / peer", ours.seconds / peer.seconds if both else None, "ratio", time_ratio),
        at_most(case, "peak memory, ours", ours and ours.megabytes, "MB", memory),
        Row(case, "peak memory, peer", peer and peer.megabytes, "MB"),
        at_most(
            case, "peak memory, ours / peer", ours.megabytes / peer.megabytes if both else None, "ratio", memory_ratio
        ),
    ]


def error_rows(case: str, errors: Mapping[str, Errors]) -> list[Row]:
    rows = []
    for who in ("ours", "peer"):
        known = errors.get(who)
        rows.append(Row(case, f"weight error, {who}", known and known.weight, "relative"))
        rows.append(Row(case, f"projected error, {who}", known and known.projected, "relative"))
    return rows


def at_most(case: str, metric: str, value: float | None, unit: str, target: float | None) -> Row:
    """A row whose target is an upper limit."""
    reached = None if value is None or target is None else value <= target
    return Row(case, metric, value, unit, target, reached)


if __name__ == "__main__":
    main()
