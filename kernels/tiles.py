"""How a product is cut up for the GPU: tiles, and which one is taken for a shape that no table knows.

The defaults are not measured. They were chosen by what the compiler makes of them for compute capabilities 8.0, 8.9,
9.0 and 12.0: no spilled registers (or a few bytes outside the inner loop), and operands that fit into shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("triton", "triton_v2")
STAGES = ((200_000, 4), (100_000, 3), (0, 2))
"""Buffers of the largest tiles, by the least bytes of shared memory that they need."""

SMALLEST_BUCKET, LARGEST_BUCKET = 16, 65_536


@dataclass(frozen=True)
class Tile:
    """``rows x columns`` outputs, ``depth`` of K at a time, in ``stages`` buffers; tiles come in bands of ``order``
    rows.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    order: int = 8

    def count(self, m: int, n: int) -> int:
        """How many tiles cover ``m x n`` outputs."""
        return -(-m // self.rows) * -(-n // self.columns)

    def fits(self, block: int | None) -> bool:
        """Whether the kernels can run it: with block scales a tile is a part of a block wide, one, or two."""
        return block is None or (self.depth == block and (block % self.columns == 0 or self.columns == 2 * block))


@dataclass(frozen=True)
class Problem:
    """The shape of a product ``[m, k] x [n, k]``; ``block`` None stands for scales per row."""

    m: int
    n: int
    k: int
    block: int | None

    @property
    def bucket(self) -> int:
        """The power of two that ``m`` is rounded up to: tuned choices hold for all rows in between."""
        return min(max(1 << (self.m - 1).bit_length(), SMALLEST_BUCKET), LARGEST_BUCKET)

    @property
    def family(self) -> str:
        """The problem but for its rows, as tables name it."""
        return f"{'row' if self.block is None else f'block{self.block}'}/{self.n}x{self.k}"


@dataclass(frozen=True)
class Device:
    """What a choice depends on. ``shared``: bytes of shared memory that one program may have."""

    arch: str
    processors: int
    shared: int
    descriptors: bool


def default_tile(problem: Problem, device: Device) -> Tile:
    """The largest tile of which there are enough to keep every processor busy."""
    if problem.m <= 16:
        return _tiny(problem.block)
    *others, smallest = _tiles(problem.block, device)
    for tile in others:
        if 2 * problem.m > tile.rows and tile.count(problem.m, problem.n) >= device.processors:
            return tile
    return smallest


def _tiny(block: int | None) -> Tile:
    """Few rows are bound by reading the weights: narrow tiles, so that all processors read, many bytes at once."""
    return Tile(16, 16, 512, 4, 3) if block is None else Tile(16, 16, block, 4, 6)


def _tiles(block: int | None, device: Device) -> tuple[Tile, ...]:
    """Largest first."""
    stages = next(stages for shared, stages in STAGES if device.shared >= shared)
    few = min(stages, 3)
    if block is None:
        large = Tile(128, 256, 128 if device.shared >= 200_000 else 64, 8, stages)
        return large, Tile(128, 128, 64, 8, 3), Tile(64, 128, 128, 4, few), Tile(64, 64, 128, 4, few)
    large = Tile(128, block, block, 8 if block == 128 else 4, stages)
    return large, Tile(64, block, block, 4, few), Tile(64, 64, block, 4, few)
