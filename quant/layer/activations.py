"""Input rows of a layer, rounded as ComfyUI's product rounds them.

Scales of rows, blocks and groups come from their absolute maximum, at every call. With one scale for all inputs (FP8),
ComfyUI takes the layer's ``input_scale``, and 1 where there is none, so that inputs above the grid's last point
saturate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..formats import Format
from ..formats.rotation import rotate


@dataclass(frozen=True, kw_only=True)
class InputRows:
    """A sample of a layer's inputs in the basis that its weight is stored in."""

    rows: Tensor
    """float32 ``[R, K]``, padded and rotated like the weight, not quantized."""
    format: Format
    input_scale: float | None = None
    """Static scale of the inputs; None: ComfyUI takes 1."""
    full_precision: bool = False
    """ComfyUI dequantizes the weight and keeps the inputs in float."""

    @classmethod
    def prepare(
        cls,
        rows: Tensor,
        width: int,
        fmt: Format,
        group: int | None,
        *,
        input_scale: float | None = None,
        full_precision: bool = False,
    ) -> InputRows:
        """Pad and rotate recorded rows.

        Args:
            rows: ``[R, K]``, as the model produced them.
            width: columns of the stored weight, at least K.
            group: rotation group of the weight.
            input_scale, full_precision: as the fields.
        """
        padded = torch.nn.functional.pad(rows.to(torch.float32), (0, width - rows.shape[1])).contiguous()
        stored = rotate(padded, group) if group else padded
        return cls(rows=stored, format=fmt, input_scale=input_scale, full_precision=full_precision)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def quantized(self) -> Tensor:
        """The rows after ComfyUI's quantization, dequantized, ``[R, K]``."""
        return self.rows if self.full_precision else self.format.round_inputs(self.rows, self.input_scale)

    def split(self, share: float) -> tuple[InputRows, InputRows]:
        """Two parts; the first has ``share`` of the rows, at least one."""
        n = max(1, round(len(self) * share))
        return replace(self, rows=self.rows[:n]), replace(self, rows=self.rows[n:])
