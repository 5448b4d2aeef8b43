"""How a product is cut into tiles for the GPU, and which tile is used for a shape that no table knows.

The defaults are not measured. Their sizes were chosen by what the compiler makes of them for compute capabilities 8.0,
8.9, 9.0 and 12.0: no spilled registers (or a few bytes outside the inner loop), and operands that fit into shared
memory. Among them the tile is chosen whose waves cost least, counted in what a processor multiplies and loads.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("triton", "triton_v2")
STAGES = ((200_000, 4), (100_000, 3), (0, 2))
"""Buffers of the largest tiles, by the bytes of shared memory that they need at least."""

SPILLING = ("sm100",)
"""Architectures on which a tile 256 columns wide spills registers: 288 bytes a thread with a bias."""

PRODUCTS_PER_CLOCK = {"sm80": 2048, "sm87": 2048, "sm90": 4096, "sm100": 8192}
"""INT8 products that a processor adds up in a clock: NVIDIA's dense INT8 rates over 2 x processors x clock (A100: 624
TOPS, 108 processors, 1.41 GHz; H100 SXM: 1979 TOPS, 132, 1.83 GHz; B200: 4.5 POPS, 148, 1.85 GHz)."""

OTHER_PRODUCTS_PER_CLOCK = 1024
"""The same of all others: RTX 3090 284 TOPS, 82 processors, 1.70 GHz; 4090 661, 128, 2.52; 5090 838, 170, 2.41."""

BYTES_PER_CLOCK = 47.4
"""Bytes that a processor loads from the second-level cache in a clock: 5120 for the 108 processors of an A100 (NVIDIA
A100 whitepaper). Not published for the others, for which it is taken to be alike."""

ROW_STEP = 64
"""Rows of the lowest default tiles for more than 16 rows; every bucket above it is a multiple."""

SMALLEST_BUCKET, LARGEST_BUCKET = 16, 65_536


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The outputs of one program, and how it walks over K. In a table a tile is the list of these fields."""

    rows: int

    columns: int

    depth: int
    """Part of K that is loaded at a time."""

    warps: int

    stages: int
    """Buffers of ``depth``."""

    order: int = 8
    """Rows of tiles that are walked together, so that operands stay in the cache."""

    def count(self, m: int, n: int) -> int:
        """Return how many tiles cover ``m x n`` outputs."""
        return -(-m // self.rows) * -(-n // self.columns)

    def fits(self, block: int | None) -> bool:
        """Return whether the kernels can run it: with block scales a tile is part of a block wide, one, or two."""
        return block is None or (self.depth == block and (block % self.columns == 0 or self.columns == 2 * block))


@dataclass(frozen=True, kw_only=True)
class GemmShape:
    """The shape of a product ``[m, k] x [n, k]`` and the side of its scale blocks; None: scales per row."""

    m: int
    n: int
    k: int
    block: int | None

    @property
    def bucket(self) -> int:
        """``m`` rounded up to a power of two: tuned tiles hold for all rows in between."""
        return min(max(1 << (self.m - 1).bit_length(), SMALLEST_BUCKET), LARGEST_BUCKET)

    @property
    def family(self) -> str:
        """Name of the shape without its rows, as tables spell it."""
        return f"{'row' if self.block is None else f'block{self.block}'}/{self.n}x{self.k}"

    @property
    def operand_bytes(self) -> int:
        """Bytes of both operands in float32, as they are drawn, and in INT8."""
        return 5 * self.k * (self.m + self.n)

    @property
    def output_bytes(self) -> int:
        """Bytes of a result in 16 bits."""
        return 2 * self.m * self.n


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """Properties of a device that the choice of a tile depends on."""

    arch: str

    processors: int

    shared: int
    """Bytes of shared memory that one program may have."""

    descriptors: bool
    """Whether the bulk copy engine (TMA) can load tiles."""


def choose_default_tile(shape: GemmShape, device: DeviceInfo) -> Tile:
    """Return the tile whose waves cost least, the largest of equals."""
    if shape.m <= 16:
        return _make_narrow_tile(shape.block)
    return min(_list_tiles(shape.block, device), key=lambda tile: estimate_cost(tile, shape, device))


def estimate_cost(tile: Tile, shape: GemmShape, device: DeviceInfo) -> float:
    """Return the clocks that the busiest processor takes for each column of K, as if nothing overlapped.

    Multiplying and loading are added because a kernel overlaps them in part: with the longer of the two alone, small
    tiles, which load more for each product, would cost as much as large ones.
    """
    waves = -(-tile.count(shape.m, shape.n) // device.processors)
    products = PRODUCTS_PER_CLOCK.get(device.arch, OTHER_PRODUCTS_PER_CLOCK)
    return waves * (tile.rows * tile.columns / products + (tile.rows + tile.columns) / BYTES_PER_CLOCK)


def _make_narrow_tile(block: int | None) -> Tile:
    """Few rows are bound by reading the weights: narrow tiles, so that all processors read, many bytes at a time."""
    return (
        Tile(rows=16, columns=16, depth=512, warps=4, stages=3)
        if block is None
        else Tile(rows=16, columns=16, depth=block, warps=4, stages=6)
    )


def _list_tiles(block: int | None, device: DeviceInfo) -> tuple[Tile, ...]:
    """Return the default tiles, largest first."""
    stages = next(stages for shared, stages in STAGES if device.shared >= shared)
    few = min(stages, 3)
    if block is None:
        columns = 128 if device.arch in SPILLING else 256
        large = Tile(rows=128, columns=columns, depth=128 if device.shared >= 200_000 else 64, warps=8, stages=stages)
        return (
            large,
            Tile(rows=128, columns=128, depth=64, warps=8, stages=3),
            Tile(rows=64, columns=128, depth=128, warps=4, stages=few),
            Tile(rows=64, columns=64, depth=128, warps=4, stages=few),
        )
    large = Tile(rows=128, columns=block, depth=block, warps=8 if block == 128 else 4, stages=stages)
    return (
        large,
        Tile(rows=64, columns=block, depth=block, warps=4, stages=few),
        Tile(rows=64, columns=64, depth=block, warps=4, stages=few),
    )
