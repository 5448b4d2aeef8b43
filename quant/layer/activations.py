"""What the host makes of a layer's inputs where it multiplies in 8 bits: it rounds them to the weight's own grid.

A format says which inputs share a scale (`Format.inputs`); scales are the absolute maximum's, found anew at every call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..formats import Format
from ..formats.granularity import PerTensor
from ..formats.rotation import rotate
from ..formats.scales import absmax, from_amax


@dataclass(frozen=True)
class Inputs:
    """A sample of a layer's inputs in the basis that its weight is stored in: padded to its width, rotated as it is.

    rows: float32 ``[R, K]``, as the model gives them. maximum: the largest magnitude of any input, where the host has
    one scale for all of them.
    """

    rows: Tensor
    format: Format
    maximum: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fed(self) -> Tensor:
        """The rows as the 8-bit product is fed them, ``[R, K]``."""
        return rounded(self.rows, self.format, self.maximum)

    def split(self, share: float) -> tuple[Inputs, Inputs]:
        """Two parts, the first with ``share`` of the rows, at least one."""
        n = max(1, round(len(self) * share))
        return replace(self, rows=self.rows[:n]), replace(self, rows=self.rows[n:])


def inputs_of(rows: Tensor, width: int, fmt: Format, group: int | None, maximum: float | None = None) -> Inputs:
    """`Inputs` from recorded ``rows [R, K]`` for a weight stored with ``width`` inputs; ``maximum``: else their own."""
    padded = torch.nn.functional.pad(rows.to(torch.float32), (0, width - rows.shape[1])).contiguous()
    stored = rotate(padded, group) if group else padded
    if maximum is None and isinstance(fmt.inputs, PerTensor):
        maximum = float(stored.abs().amax())
    return Inputs(stored, fmt, maximum)


def rounded(rows: Tensor, fmt: Format, maximum: float | None = None) -> Tensor:
    """float32 ``rows [R, K]`` rounded to the format's grid as the host rounds them, and dequantized."""
    as_inputs = replace(fmt, granularity=fmt.inputs)
    known = maximum is not None and isinstance(fmt.inputs, PerTensor)
    scale = from_amax(rows.new_tensor(maximum), fmt) if known else absmax(rows, as_inputs)
    wide = fmt.inputs.expand(scale, (rows.shape[0], rows.shape[1]))
    return fmt.grid.encode(rows / wide).to(torch.float32).mul_(wide)
