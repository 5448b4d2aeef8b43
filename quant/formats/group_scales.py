"""Scales of two levels: one for each group of inputs, on top of one for each row or for the whole weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def by_group(weight: Tensor, group: int) -> Tensor:
    """A matrix ``[N, K]`` as ``[N, K / group, group]``."""
    return weight.reshape(weight.shape[0], -1, group)


@dataclass(frozen=True, kw_only=True)
class GroupScales:
    """The scales of a layer in a `GroupedFormat`."""

    group: Tensor
    """float8_e4m3fn ``[N, K / g]``: scales of the groups of a row, relative to `channel`. Read files may have float32.
    """
    channel: Tensor
    """float32 ``[N]``; ``[]`` if all rows share one."""
    codebook: Tensor | None = None
    """float32 ``[levels]``, ascending: what codes stand for, if that is not the format's own table."""

    @property
    def row_channel(self) -> Tensor:
        """`channel` as it is multiplied with rows ``[N, K]``: ``[N, 1]`` or ``[]``."""
        return self.channel if self.channel.dim() == 0 else self.channel[:, None]

    def rows(self, part: slice) -> GroupScales:
        """The scales of some rows."""
        channel = self.channel if self.channel.dim() == 0 else self.channel[part]
        return replace(self, group=self.group[part], channel=channel)

    @classmethod
    def join(cls, parts: Sequence[GroupScales]) -> GroupScales:
        """The scales of consecutive parts of one weight."""
        first = parts[0]
        # By bytes: not every CUDA build joins tensors in FP8.
        group = torch.cat([part.group.view(torch.uint8) for part in parts]).view(first.group.dtype)
        channel = first.channel if first.channel.dim() == 0 else torch.cat([part.channel for part in parts])
        return replace(first, group=group, channel=channel)

    def where(self, rows: Tensor, other: GroupScales) -> GroupScales:
        """These scales for the rows of a mask ``[N]``, and other ones of the same weight for all other rows.

        Both have the same codebook, and the same `channel` if all rows share it.
        """
        # By bytes: `where` does not support every 8-bit float dtype.
        group = torch.where(rows[:, None], self.group.view(torch.uint8), other.group.view(torch.uint8))
        channel = self.channel if self.channel.dim() == 0 else torch.where(rows, self.channel, other.channel)
        return replace(self, group=group.view(self.group.dtype), channel=channel)
