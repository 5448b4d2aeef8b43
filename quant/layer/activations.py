"""Input rows of a layer, and what ComfyUI's 8-bit product makes of them: it rounds them to the weight's own grid.

`Format.inputs` says which inputs share a scale. Scales come from the absolute maximum, at every call.
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
class InputRows:
    """A sample of a layer's inputs in the basis that its weight is stored in."""

    rows: Tensor
    """float32 ``[R, K]``, padded and rotated like the weight, not quantized."""
    format: Format
    maximum: float | None = None
    """Largest magnitude of any input, for formats with one scale for all inputs."""

    @classmethod
    def prepare(
        cls, rows: Tensor, width: int, fmt: Format, group: int | None, maximum: float | None = None
    ) -> InputRows:
        """Pad and rotate recorded rows.

        Args:
            rows: ``[R, K]``, as the model produced them.
            width: columns of the stored weight, at least K.
            group: rotation group of the weight.
            maximum: largest magnitude of any input; by default that of ``rows``.
        """
        padded = torch.nn.functional.pad(rows.to(torch.float32), (0, width - rows.shape[1])).contiguous()
        stored = rotate(padded, group) if group else padded
        if maximum is None and isinstance(fmt.inputs, PerTensor):
            maximum = float(stored.abs().amax())
        return cls(stored, fmt, maximum)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def quantized(self) -> Tensor:
        """The rows after ComfyUI's quantization, dequantized, ``[R, K]``."""
        return quantize_rows(self.rows, self.format, self.maximum)

    def split(self, share: float) -> tuple[InputRows, InputRows]:
        """Two parts; the first has ``share`` of the rows, at least one."""
        n = max(1, round(len(self) * share))
        return replace(self, rows=self.rows[:n]), replace(self, rows=self.rows[n:])


def quantize_rows(rows: Tensor, fmt: Format, maximum: float | None = None) -> Tensor:
    """Round float32 ``rows [R, K]`` to the format's grid as ComfyUI does, and dequantize them.

    Args:
        maximum: largest magnitude of any input, where all inputs share one scale; by default that of ``rows``.
    """
    as_inputs = replace(fmt, granularity=fmt.inputs)
    known = maximum is not None and isinstance(fmt.inputs, PerTensor)
    scale = from_amax(rows.new_tensor(maximum), fmt) if known else absmax(rows, as_inputs)
    wide = fmt.inputs.expand(scale, (rows.shape[0], rows.shape[1]))
    return fmt.grid.encode(rows / wide).to(torch.float32).mul_(wide)
