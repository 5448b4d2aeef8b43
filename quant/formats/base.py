"""What every format can do, whatever its codes and scales are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .group_scales import GroupScales
from .marker import Marker

Shape = tuple[int, int]
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]

Scale = Tensor | GroupScales
"""The scales of a layer as one value: float32 in the shape of a granularity, or of two levels."""


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """How a weight ``[N, K]`` is stored. `ScaledFormat` and `GroupedFormat` say what a code stands for."""

    name: str
    """Name in a recipe."""
    title: str
    """Name in the user interface."""
    comfyui_name: str
    """Name in markers, a key of ComfyUI's ``QUANT_ALGOS``; shared by formats that differ in their scales only."""
    multiple: Shape = (1, 1)
    """N and K must divide by these, as ComfyUI's matrix products ask."""
    padded: Shape = (1, 1)
    """N and K are padded with zeros up to multiples of these."""
    rotated: bool = False
    """Whether the weight is rotated in groups of inputs before rounding (see `rotation`)."""
    needs_rotation: bool = False
    """Whether every layer must be rotated, because ComfyUI rotates the inputs of all of them."""
    marks_rotation: bool = True
    """Whether the marker of a rotated layer has ``convrot``."""
    static_input: bool = False
    """Whether ComfyUI can quantize the layer's input with a measured ``input_scale``."""
    measures_inputs: bool = False
    """Whether ComfyUI measures the scale of inputs without an ``input_scale`` in each call; otherwise it takes 1."""
    obeys_full_precision: bool = False
    """Whether every supported ComfyUI keeps the inputs in float if the marker asks for it (INT8: from 0.38 on only)."""
    needs_full_precision: bool = False
    """Whether every layer is marked to be multiplied in 16 bits, because CUDA has no product in this format."""
    group_size: int | None = None
    """Inputs, or side of the square blocks, that share a scale, where the marker says it."""
    stock: bool = True
    """Whether ComfyUI loads it without any pack."""
    needs: str = ""
    """What a file needs to be loaded, where ComfyUI 0.27 is not enough."""

    @property
    @abstractmethod
    def code_dtype(self) -> torch.dtype:
        """Dtype of codes ``[N, K]`` inside the engine."""

    @property
    @abstractmethod
    def supports_lookup(self) -> bool:
        """Whether ComfyUI can look up embedding rows in this format (scales of blocks or groups: no)."""

    @property
    @abstractmethod
    def row_unit(self) -> int:
        """Rows that share scales; blocks of rows are multiples of it."""

    @property
    @abstractmethod
    def scale_methods(self) -> tuple[str, ...]:
        """The methods that `find_scale` knows."""

    @property
    @abstractmethod
    def input_maximum(self) -> float:
        """Largest input that is not clipped at an ``input_scale`` of 1, of formats with `static_input`."""

    @abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """Dtype and shape of every tensor that `pack` returns for a weight ``[N, K]``, by name within the layer."""

    @abstractmethod
    def find_scale(self, weight: Tensor, method: str) -> Scale:
        """Choose the scales of a whole weight, float32 in the padded shape.

        Args:
            weight: as it is stored: padded and rotated.
            method: one of `scale_methods`.
        """

    @abstractmethod
    def round(self, weight: Tensor, scale: Any) -> Tensor:
        """Nearest codes ``[N, K]`` of a weight, float32 ``[N, K]``."""

    def round_into(self, weight: Tensor, scale: Any, codes: Tensor, values: Tensor) -> None:
        """Write the results of `round` to ``codes``, and what they stand for to ``values``, float32 ``[N, K]``."""
        codes.copy_(self.round(weight, scale))
        values.copy_(self.dequantize(codes, scale))

    @abstractmethod
    def neighbours(self, weight: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
        """The grid points around each weight, dequantized, float32 ``[N, K]``: the next below and the next above.

        Both are the weight itself if it is a grid point, and the same one if it lies beyond the grid's end.
        """

    @abstractmethod
    def dequantize(self, codes: Tensor, scale: Any) -> Tensor:
        """Decode codes: float32 ``[N, K]``, still rotated if the format rotates."""

    @abstractmethod
    def round_inputs(self, rows: Tensor, input_scale: float | None = None) -> Tensor:
        """Input rows, float32 ``[R, K]``, after ComfyUI's quantization, dequantized.

        Args:
            rows: padded and rotated as the weight is.
            input_scale: static scale of the inputs, for formats that take one.
        """

    @abstractmethod
    def pack(self, codes: Tensor, scale: Any) -> dict[str, Tensor]:
        """The tensors of a layer, as `layout` describes them.

        Args:
            codes: in the padded shape.
            scale: as `find_scale` returns it.
        """

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Scale]:
        """Codes and scales of a layer: the inverse of `pack`.

        Args:
            tensors: of a file, by name within the layer.
        """

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight that the tensors of a layer stand for, float32 ``[N, K]``, still rotated if the format rotates."""
        return self.dequantize(*self.unpack(tensors))

    def takes(self, shape: Shape, lookup: bool = False) -> bool:
        """Whether a weight can be stored and run in this format.

        Args:
            shape: ``(N, K)``.
            lookup: the weight is an embedding.
        """
        divides = all(size % step == 0 for size, step in zip(shape, self.multiple, strict=True))
        return divides and (self.supports_lookup or not lookup)

    def padded_shape(self, shape: Shape) -> Shape:
        rows, columns = (-(-size // step) * step for size, step in zip(shape, self.padded, strict=True))
        return rows, columns

    def make_marker(self, shape: Shape, group: int | None, full_precision: bool) -> Marker:
        """The marker of a layer with a weight of this shape.

        Args:
            shape: of the float weight, ``(N, K)``.
            group: inputs per rotation group; None where the weight is not rotated.
            full_precision: ask ComfyUI to dequantize and multiply in 16 bits.
        """
        return Marker(
            format=self.comfyui_name,
            convrot=True if group is not None and self.marks_rotation else None,
            convrot_groupsize=group,
            group_size=self.group_size,
            full_precision_matrix_mult=full_precision or None,
            orig_shape=None if self.padded_shape(shape) == shape else shape,
        )
