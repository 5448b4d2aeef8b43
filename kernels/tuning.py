"""Measures which backend and tile is fastest for each shape on this GPU, and writes the user's tuned table.

python -m calibrated_rounding.kernels.tuning [--out FILE] [--shape N K]... [--rows M]... [--again]

Nothing in the pack runs this by itself. Without --shape and --rows it takes the layers of the supported models; what
the table has already is kept, unless --again is given. Every candidate's result is compared with the default tile's.
"""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import tables
from .ops import act_quant, weight_quant
from .shapes import ROWS, distinct
from .tables import Choice, Key
from .tiles import BACKENDS, Device, Problem, Tile, default_tile
from .timing import race

TOLERANCE = 1e-5
"""Of a block-scaled sum, relative to the largest: its float32 terms may be added in another order."""

ROUNDS = 10
LOW = ((16, 16, 4), (16, 32, 4), (16, 64, 4), (32, 64, 4))
HIGH = (
    (64, 64, 4),
    (64, 128, 4),
    (128, 64, 4),
    (128, 128, 4),
    (128, 128, 8),
    (64, 256, 4),
    (128, 256, 8),
    (256, 128, 8),
)
"""Rows, columns and warps of the tiles tried: low ones read weights with as many bytes under way as they can."""

LOW_DEPTHS, HIGH_DEPTHS, LOW_STAGES, HIGH_STAGES = (256, 512), (64, 128), (3, 4, 6), (3, 4)
ORDER = 8

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table (default: the user's own)")
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("N", "K"), help="only these layers")
    parser.add_argument("--rows", type=int, action="append", metavar="M", help="only these numbers of rows")
    parser.add_argument("--again", action="store_true", help="also measure what the table has already")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("Nothing was tuned: no CUDA device.", file=sys.stderr)
        return 1
    tune(options.shape or distinct(), options.rows or ROWS, options.out, again=options.again)
    return 0


def tune(
    shapes: Iterable[Sequence[int]], rows: Iterable[int], path: Path | None = None, *, again: bool = False
) -> Path:
    """Measure every shape with every number of rows and scaling; gives the table's path. Needs a GPU and Triton."""
    import triton

    from .gpu.device import device_of

    device = device_of(torch.device("cuda"))
    path = path or tables.user_table(device.arch)
    table = dict(tables.read(path))
    head = {"arch": device.arch, "device": torch.cuda.get_device_name(), "triton": triton.__version__}
    for problem in problems(shapes, rows):
        key = problem.family, problem.bucket
        if again or key not in table:
            table.pop(key, None)
            table |= _tuned(key, problem, device)
            tables.write(path, table, head)
    tables.forget()
    return path


def problems(shapes: Iterable[Sequence[int]], rows: Iterable[int]) -> Iterator[Problem]:
    """What is measured: a bucket is stood for by its largest number of rows."""
    rows = sorted({Problem(m, 1, 1, None).bucket for m in rows})
    for n, k in shapes:
        for block in (None, 128, 64):
            yield from (Problem(m, n, k, block) for m in rows)


def candidates(problem: Problem, device: Device) -> list[Tile]:
    """Tiles that may be the fastest: not much taller than the problem, with buffers that fit into shared memory."""
    low = [size for size in LOW if problem.m <= 128 and size[0] <= problem.m]
    high = [size for size in HIGH if size[0] <= problem.m]
    tiles = [
        *_tiles(low, LOW_DEPTHS, LOW_STAGES, problem.block),
        *_tiles(high, HIGH_DEPTHS, HIGH_STAGES, problem.block),
    ]
    return [tile for tile in tiles if tile.stages * (tile.rows + tile.columns) * tile.depth <= device.shared]


def _tiles(
    sizes: Iterable[tuple[int, int, int]], depths: Sequence[int], stages: Sequence[int], block: int | None
) -> Iterator[Tile]:
    for rows, columns, warps in sizes:
        for depth in depths if block is None else (block,):
            for count in stages:
                tile = Tile(rows, columns, depth, warps, count, ORDER)
                if tile.fits(block):
                    yield tile


def _tuned(key: Key, problem: Problem, device: Device) -> dict[Key, tuple[Choice, ...]]:
    choices = tuple(choice for backend in BACKENDS if (choice := _fastest(backend, problem, device)) is not None)
    print(f"{key[0]} M {key[1]}: " + ", ".join(f"{c.backend} {c.ms:.4f} ms {c.tile}" for c in choices), flush=True)
    return {key: choices} if choices else {}


def _fastest(backend: str, problem: Problem, device: Device) -> Choice | None:
    """A race of all candidates that run and are right; None if none is."""
    attempt, out = _attempt(problem)
    attempt(Choice("triton", default_tile(problem, device)))
    wanted = out.clone()
    calls: dict[str, Callable[[], object]] = {}
    tiles = {str(tile): tile for tile in candidates(problem, device)}
    for name, tile in tiles.items():
        call = partial(attempt, Choice(backend, tile))
        if _is_right(call, out, wanted, name):
            calls[name] = call
    if not calls:
        return None
    times = race(calls, ROUNDS, out.device)
    best = min(times, key=lambda name: times[name])
    return Choice(backend, tiles[best], times[best])


def _attempt(problem: Problem) -> tuple[Callable[[Choice], None], Tensor]:
    """A function that computes the problem in a given way, and the tensor that it computes into."""
    from .gpu.product import run

    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(problem.m, problem.k, device="cuda", generator=generator)
    w = torch.randn(problem.n, problem.k, device="cuda", generator=generator)
    a = act_quant(x, problem.block)
    b = act_quant(w, None) if problem.block is None else weight_quant(w, problem.block)
    out = torch.empty(problem.m, problem.n, dtype=torch.bfloat16, device="cuda")
    return lambda choice: run(choice, problem, *a, *b, None, out, None), out


def _is_right(call: Callable[[], object], out: Tensor, wanted: Tensor, name: str) -> bool:
    out.zero_()
    try:
        call()
        torch.cuda.synchronize()
    except Exception as error:  # a tile that does not compile or fit is not a candidate
        logger.info("%s does not run: %s", name, error)
        return False
    # bfloat16 keeps 8 bits, so a term that is added in another order can move a value by one place.
    return bool((out - wanted).abs().max() <= (TOLERANCE + 2.0**-8) * wanted.abs().max())


if __name__ == "__main__":
    sys.exit(main())
