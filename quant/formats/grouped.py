"""Formats of two levels of scales, whose codes take less than a byte.

A code is a row of a small table of levels. The levels of a group of inputs are decoded with the group's scale into the
group's grid, whose points are then multiplied by the scale of the row or of the weight:

    grid point = decode(level * group scale),  weight = grid point * channel scale

`decode` rounds to INT8 where ComfyUI multiplies in INT8 (``w4a8``, ``w6a8``), so that a group's grid depends on its
scale and cannot be found by scaling another group's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import mxfp8
from .base import Format, Layout, Shape
from .group_scales import GroupScales, by_group
from .packing import Packing
from .weight_rows import WeightRows

E4M3 = torch.float8_e4m3fn
CODEBOOK = "weight_codebook"

CHUNK_ELEMENTS = 1 << 20
"""Weights that are rounded at a time: the grids of a group of 16 take up to four times its memory."""

FindScale = Callable[[Tensor, "GroupedFormat", "Tensor | None"], GroupScales]
"""Finds scales of rows; the last argument is what `FindShared` found."""
FindShared = Callable[[WeightRows, "GroupedFormat"], Tensor]


@dataclass(frozen=True, kw_only=True)
class GroupedFormat(Format):
    """Codes index levels; the grid of each group of inputs depends on the group's scale."""

    table: tuple[float, ...]
    """Level of each code; the frozen codebook if layers have one."""
    order: tuple[int, ...]
    """The codes that are written, in ascending order of their levels."""
    group: int = 16
    """Inputs that share a group scale."""
    integer: bool = True
    """Whether grid points are rounded to whole numbers within -127 to 127."""
    codebooks: bool = False
    """Whether every layer stores its table."""
    channel_per_row: bool = True
    """Whether every row has a channel scale, or the weight one for all rows."""
    packing: Packing
    group_name: str = "weight_s_rel"
    """Name of the group scales' tensor within the layer."""
    channel_name: str = "weight_s_channel"
    """Name of the channel scales' tensor within the layer."""
    swizzled: bool = False
    """Whether group scales are stored in tiles of 128 x 4, as cuBLAS reads them."""
    find: Mapping[str, FindScale]
    """How scales are chosen, by method."""
    share: FindShared | None = None
    """Finds what all rows of a weight share: its codebook, or the channel scale. None: rows share nothing."""
    inputs: Format | None = None
    """Format that ComfyUI rounds the inputs to; None: the same as the weight's."""

    @property
    def code_dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def supports_lookup(self) -> bool:
        return False

    @property
    def row_unit(self) -> int:
        return 1

    @property
    def scale_methods(self) -> tuple[str, ...]:
        return tuple(self.find)

    @property
    def input_maximum(self) -> float:
        return self.table[self.order[-1]] * torch.finfo(E4M3).max

    def layout(self, shape: Shape) -> Layout:
        rows, columns = self.padded_shape(shape)
        groups = (rows, columns // self.group)
        codebook: Layout = {CODEBOOK: (torch.float32, (len(self.table),))} if self.codebooks else {}
        return {
            "weight": (self.packing.dtype, self.packing.stored_shape((rows, columns))),
            self.group_name: (E4M3, mxfp8.swizzled_shape(groups) if self.swizzled else groups),
            self.channel_name: (torch.float32, (rows,) if self.channel_per_row else ()),
            **codebook,
        }

    def find_scale(self, weight: Tensor, method: str) -> GroupScales:
        return self.find_row_scales(weight, method, self.find_shared(WeightRows.of(weight)))

    def find_shared(self, rows: WeightRows) -> Tensor | None:
        """Find what all rows of a weight share, which `find_row_scales` takes."""
        return None if self.share is None else self.share(rows, self)

    def find_row_scales(self, weight: Tensor, method: str, shared: Tensor | None) -> GroupScales:
        """Choose the scales of some rows ``[n, K]`` of a weight; arguments as in `find_scale`."""
        return self.find[method](weight, self, shared)

    def decode(self, levels: Tensor, group_scale: Tensor) -> Tensor:
        """Grid points, float32, of levels under group scales that broadcast with them."""
        points = levels * group_scale.to(torch.float32)
        return points.round_().clamp_(-127, 127) if self.integer else points

    def levels(self, scale: GroupScales) -> Tensor:
        """Levels in ascending order, float32 ``[L]``; ``order`` has their codes."""
        return self._table(scale)[load_constants(self.order, torch.int64, scale.group.device)]

    def grid(self, scale: GroupScales) -> Tensor:
        """Grid points of every group, float32 ``[N, K / g, L]``, ascending, in units of the channel scale."""
        return self.decode(self.levels(scale), scale.group.to(torch.float32)[..., None])

    def round(self, weight: Tensor, scale: GroupScales) -> Tensor:
        order = load_constants(self.order, torch.uint8, weight.device)
        return torch.cat([order[self._nearest(weight[part], scale.rows(part))] for part in _chunks(weight)])

    def neighbours(self, weight: Tensor, scale: GroupScales) -> tuple[Tensor, Tensor]:
        pairs = [self._neighbours(weight[part], scale.rows(part)) for part in _chunks(weight)]
        lower, upper = (torch.cat(points) for points in zip(*pairs, strict=True))
        return lower, upper

    def dequantize(self, codes: Tensor, scale: GroupScales) -> Tensor:
        levels = by_group(self._table(scale)[codes.to(torch.int32)], self.group)
        return self.decode(levels, scale.group.to(torch.float32)[..., None]).flatten(1).mul_(scale.row_channel)

    def round_inputs(self, rows: Tensor, input_scale: float | None = None) -> Tensor:
        if self.inputs is not None:
            return self.inputs.round_inputs(rows, input_scale)
        scale = self.find_scale(rows, self.scale_methods[0])
        return self.dequantize(self.round(rows, scale), scale)

    def pack(self, codes: Tensor, scale: GroupScales) -> dict[str, Tensor]:
        group = mxfp8.swizzle(scale.group.view(torch.uint8)).view(E4M3) if self.swizzled else scale.group
        tensors = {"weight": self.packing.store(codes), self.group_name: group, self.channel_name: scale.channel}
        return tensors | ({CODEBOOK: self._table(scale).clone()} if self.codebooks else {})

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, GroupScales]:
        codes, group = self.packing.load(tensors["weight"]), tensors[self.group_name]
        group = group.view(E4M3) if group.dtype == torch.uint8 else group
        if self.swizzled:
            groups = (codes.shape[0], codes.shape[1] // self.group)
            group = mxfp8.unswizzle(group.view(torch.uint8), groups).view(E4M3)
        channel = tensors[self.channel_name].to(torch.float32)
        channel = channel if self.channel_per_row else channel.reshape(())
        return codes, GroupScales(group=group, channel=channel, codebook=self._codebook(tensors))

    def _codebook(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """A layer's own table; whole numbers around zero if its format has tables and it holds none."""
        middle = len(self.table) // 2
        return tensors.get(CODEBOOK, torch.arange(-middle, middle).float()) if self.codebooks else None

    def _table(self, scale: GroupScales) -> Tensor:
        if scale.codebook is not None:
            return scale.codebook.to(scale.group.device)
        return load_constants(self.table, torch.float32, scale.group.device)

    def _nearest(self, weight: Tensor, scale: GroupScales) -> Tensor:
        """Places in `order` of the nearest grid points of some rows, ``[n, K]``; the lower of equals."""
        targets = by_group(weight / scale.row_channel, self.group)
        return nearest_places(self.grid(scale), targets).flatten(1)

    def _neighbours(self, weight: Tensor, scale: GroupScales) -> tuple[Tensor, Tensor]:
        points, targets = self.grid(scale), by_group(weight / scale.row_channel, self.group)
        last = points.shape[-1] - 1
        lower = torch.searchsorted(points, targets, right=True).sub_(1).clamp_(min=0)
        upper = torch.searchsorted(points, targets).clamp_(max=last)
        below, above = (points.gather(-1, places).flatten(1).mul_(scale.row_channel) for places in (lower, upper))
        return below, above


@lru_cache(maxsize=32)
def load_constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, copied there once; they are not written to."""
    return torch.tensor(values, dtype=dtype, device=device)


def _chunks(weight: Tensor) -> list[slice]:
    """Rows of a weight, `CHUNK_ELEMENTS` at a time."""
    height = max(1, CHUNK_ELEMENTS // max(weight.shape[1], 1))
    return [slice(start, start + height) for start in range(0, weight.shape[0], height)]


def nearest_places(points: Tensor, targets: Tensor) -> Tensor:
    """Places of the nearest points; the lower of equally near ones.

    Of points that coincide it is the last where the target lies above them, and the first where it does not.

    Args:
        points: ascending, ``[..., L]``, or ``[L]`` for all targets.
        targets: ``[..., g]``.

    Returns:
        int64, in the shape of ``targets``.
    """
    last = points.shape[-1] - 1
    above = torch.searchsorted(points.contiguous(), targets.contiguous())
    lower, upper = (above - 1).clamp_(0, last), above.clamp_(0, last)
    below, beyond = (_pick(points, places) for places in (lower, upper))
    return torch.where((targets - beyond).abs_() < (targets - below).abs_(), upper, lower)


def _pick(points: Tensor, places: Tensor) -> Tensor:
    return points[places] if points.dim() == 1 else points.gather(-1, places)
