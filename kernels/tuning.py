"""Measures the fastest backend and tile for each shape on this GPU, and writes the user's tuned table.

python -m calibrated_rounding.kernels.tuning [--out FILE] [--shape N K]... [--rows M]... [--again]

Nothing in the pack runs this by itself. Without --shape and --rows the layers of the supported models are measured.
Entries of the table are kept unless --again is given. Every candidate's result is compared with the default tile's.
Products that the GPU's memory does not hold are skipped, and named.
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
from .memory import describe_size, fits
from .ops import act_quant, weight_quant
from .shapes import ROWS, list_unique_shapes
from .tables import KernelConfig, TableKey
from .tiles import BACKENDS, DeviceInfo, GemmShape, Tile, choose_default_tile
from .timing import CACHE_BYTES, race

TOLERANCE = 1e-5
"""Allowed error of a block-scaled sum, relative to the largest: its terms may be added in another order."""

COMPARED_BYTES = 1 << 28
"""Memory for comparing results, some rows at a time."""

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
"""Rows, columns and warps of the candidates. Low tiles read weights with as many bytes in flight as possible."""

LOW_DEPTHS, HIGH_DEPTHS, LOW_STAGES, HIGH_STAGES = (256, 512), (64, 128), (3, 4, 6), (3, 4)
ORDER = 8

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 without a CUDA device."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table (default: the user's own)")
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("N", "K"), help="only these layers")
    parser.add_argument("--rows", type=int, action="append", metavar="M", help="only these numbers of rows")
    parser.add_argument("--again", action="store_true", help="measure shapes that the table already has, too")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("Nothing was tuned: no CUDA device.", file=sys.stderr)
        return 1
    tune(options.shape or list_unique_shapes(), options.rows or ROWS, options.out, again=options.again)
    return 0


def tune(
    shapes: Iterable[Sequence[int]], rows: Iterable[int], path: Path | None = None, *, again: bool = False
) -> Path:
    """Measure every shape with every number of rows and every scaling. Needs a GPU and Triton.

    Args:
        shapes: ``(N, K)`` of each layer.
        rows: Values of M.
        path: Of the table; None: the user's own.
        again: Measure shapes that the table already has, too.

    Returns:
        The table's path.
    """
    import triton

    from .gpu.device import get_device_info

    device = get_device_info(torch.device("cuda"))
    path = path or tables.user_table_path(device.arch)
    table = dict(tables.read_table(path))
    head = {"arch": device.arch, "device": torch.cuda.get_device_name(), "triton": triton.__version__}
    for shape in list_gemm_shapes(shapes, rows):
        key = shape.family, shape.bucket
        if not fits(peak_bytes(shape), torch.device("cuda")):
            print(f"{shape.family} M {shape.m}: skipped, {describe_size(peak_bytes(shape))} are not free", flush=True)
        elif again or key not in table:
            table.pop(key, None)
            table |= _tune_shape(key, shape, device)
            tables.write_table(path, table, head)
    tables.clear_caches()
    return path


def peak_bytes(shape: GemmShape) -> int:
    """Return the bytes that tuning a product takes: operands, two results, and what clears the cache."""
    return shape.operand_bytes + 2 * shape.output_bytes + COMPARED_BYTES + CACHE_BYTES


def list_gemm_shapes(shapes: Iterable[Sequence[int]], rows: Iterable[int]) -> Iterator[GemmShape]:
    """Return the products to measure; the largest M of a bucket represents the bucket."""
    rows = sorted({GemmShape(m=m, n=1, k=1, block=None).bucket for m in rows})
    for n, k in shapes:
        for block in (None, 128, 64):
            yield from (GemmShape(m=m, n=n, k=k, block=block) for m in rows)


def list_candidates(shape: GemmShape, device: DeviceInfo) -> list[Tile]:
    """Return tiles that may be the fastest: no taller than the product, with buffers that fit into shared memory."""
    low = [size for size in LOW if shape.m <= 128 and size[0] <= shape.m]
    high = [size for size in HIGH if size[0] <= shape.m]
    tiles = [
        *_list_tiles(low, LOW_DEPTHS, LOW_STAGES, shape.block),
        *_list_tiles(high, HIGH_DEPTHS, HIGH_STAGES, shape.block),
    ]
    return [tile for tile in tiles if tile.stages * (tile.rows + tile.columns) * tile.depth <= device.shared]


def _list_tiles(
    sizes: Iterable[tuple[int, int, int]], depths: Sequence[int], stages: Sequence[int], block: int | None
) -> Iterator[Tile]:
    for rows, columns, warps in sizes:
        for depth in depths if block is None else (block,):
            for count in stages:
                tile = Tile(rows=rows, columns=columns, depth=depth, warps=warps, stages=count, order=ORDER)
                if tile.fits(block):
                    yield tile


def _tune_shape(key: TableKey, shape: GemmShape, device: DeviceInfo) -> dict[TableKey, tuple[KernelConfig, ...]]:
    configs = tuple(config for backend in BACKENDS if (config := _find_fastest(backend, shape, device)) is not None)
    print(f"{key[0]} M {key[1]}: " + ", ".join(f"{c.backend} {c.ms:.4f} ms {c.tile}" for c in configs), flush=True)
    return {key: configs} if configs else {}


def _find_fastest(backend: str, shape: GemmShape, device: DeviceInfo) -> KernelConfig | None:
    """Race all candidates that run and agree with the default tile; None if there are none."""
    run, out = _prepare(shape)
    run(KernelConfig("triton", choose_default_tile(shape, device)))
    reference = out.clone()
    calls: dict[str, Callable[[], object]] = {}
    tiles = {str(tile): tile for tile in list_candidates(shape, device)}
    for name, tile in tiles.items():
        call = partial(run, KernelConfig(backend, tile))
        if _agrees(call, out, reference, name):
            calls[name] = call
    if not calls:
        return None
    times = race(calls, ROUNDS, out.device)
    best = min(times, key=lambda name: times[name])
    return KernelConfig(backend, tiles[best], times[best])


def _prepare(shape: GemmShape) -> tuple[Callable[[KernelConfig], None], Tensor]:
    """Return a function that computes the product in a given configuration, and the tensor that it writes."""
    from .gpu.product import run_product

    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape.m, shape.k, device="cuda", generator=generator)
    w = torch.randn(shape.n, shape.k, device="cuda", generator=generator)
    a = act_quant(x, shape.block)
    b = act_quant(w, None) if shape.block is None else weight_quant(w, shape.block)
    out = torch.empty(shape.m, shape.n, dtype=torch.bfloat16, device="cuda")
    return lambda config: run_product(config, shape, *a, *b, None, out, None), out


def _agrees(call: Callable[[], object], out: Tensor, reference: Tensor, name: str) -> bool:
    out.zero_()
    try:
        call()
        torch.cuda.synchronize()
    except Exception as error:  # a tile that does not compile or fit is not a candidate
        logger.info("%s does not run: %s", name, error)
        return False
    # bfloat16 keeps 8 bits, so adding terms in another order can move a value by one place.
    height = max(1, COMPARED_BYTES // (8 * out.shape[1]))
    pairs = list(zip(torch.split(out, height), torch.split(reference, height), strict=True))
    largest = max(float(part.abs().max()) for _, part in pairs)
    differences = [float((part - other).abs().max()) for part, other in pairs]
    # A maximum of floats would drop NaN.
    return all(difference <= (TOLERANCE + 2.0**-8) * largest for difference in differences)


if __name__ == "__main__":
    sys.exit(main())
