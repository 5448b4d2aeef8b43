"""Tensors that a layer of each format must have in a file: the read-only table.

`table` has the formats that this pack writes; this table also has the ones that it only reads. Sources:
``comfy/ops.py`` and ``comfy/quant_ops.py`` of ComfyUI 0.29 to 0.38, the layouts of comfy-kitchen 0.2.24 to 0.2.40.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal

import torch

from .base import Shape
from .companions import (
    BYTES_OF_E4M3,
    EXPONENTS,
    FLOATS,
    Companion,
    Sizes,
    blocks,
    columns,
    groups,
    groups_by_column,
    is_exponent,
    is_finite,
    is_positive,
    one,
    one_or_rows,
    rows,
    swizzled,
)
from .granularity import PerBlock
from .grids import E4M3
from .grouped import CODEBOOK, GroupedFormat
from .marker import Marker
from .packing import E2M1_NIBBLES, NIBBLES, SIX_BITS
from .read_only import Decode, decode_affine, decode_signed, scale_inputs
from .scaled import ScaledFormat
from .table import BLOCKWISE, FORMATS, int8_blockwise

Rotation = Literal["never", "marked", "always"]

UNPACKED = Fraction(1)


@dataclass(frozen=True, kw_only=True)
class StoredFormat:
    """Storage of a format's layers in a file."""

    codes: torch.dtype
    """Dtype of ``weight``."""
    companions: Mapping[str, Companion]
    """The tensors beside ``weight``, ``bias`` and the marker, by name."""
    scale: str = "weight_scale"
    """The companion that holds most scales."""
    packing: Fraction = UNPACKED
    """Stored columns for each input."""
    multiple: Shape = (1, 1)
    """N and K divide by these, padding included."""
    group_size: int = 1
    """Inputs that share a scale, where the marker does not say."""
    fixed_group: bool = False
    """Whether no other group size is possible."""
    rotation: Rotation = "never"
    """When the weight is rotated: where the marker has ``convrot``, or whatever the marker has."""
    needs: str = ""
    """Programs that run it, if known; else empty."""
    decode: Callable[[Marker], Decode]
    """How the tensors of a layer with this marker become a float weight."""

    def padded_shape(self, codes: Sizes) -> Shape | None:
        """``(N, K)`` of the weight, padding included, whose codes have this shape; None where there is none.

        Of a bank of experts, whose codes have a leading dimension, it is the shape of each expert's weight.
        """
        if len(codes) not in (2, 3):
            return None
        high, wide = codes[-2], codes[-1] / self.packing
        fits = wide.denominator == 1 and high % self.multiple[0] == 0 and wide % self.multiple[1] == 0
        return (high, int(wide)) if fits else None

    def padded(self, shape: Sizes) -> Sizes:
        """A weight's shape with the padding that the format adds."""
        return tuple(-(-size // step) * step for size, step in zip(shape, self.multiple, strict=False))

    def group(self, marker: Marker) -> int:
        """Inputs that share a scale in a layer with this marker."""
        return marker.group_size or self.group_size

    def rotation_group(self, marker: Marker) -> int | None:
        """Inputs per rotation group in a layer with this marker; None where the weight is not rotated."""
        return replace(marker, convrot=True).rotation_group if self.rotation == "always" else marker.rotation_group


INPUT_SCALE = Companion(dtypes=FLOATS, shapes=one, required=False, usable=is_positive)
INPUT_SCALES = Companion(dtypes=FLOATS, shapes=one_or_rows, required=False, usable=is_positive)
"""INT8 in ComfyUI has no static input scale. convert-to-quant writes one, for each row with some presets, and it means
nothing there.
"""
GROUP_SCALES = {
    "weight_s_rel": Companion(dtypes=(torch.float32, *BYTES_OF_E4M3), shapes=groups, usable=is_finite),
    "weight_s_channel": Companion(dtypes=(torch.float32,), shapes=rows, usable=is_finite),
}
TABLE = Companion(dtypes=(torch.float32,), shapes=lambda shape, group: {(16,)}, required=False, usable=is_finite)


def _grouped(name: str, marker: Marker) -> Decode:
    """The decoder of a format that is read in groups of any size, and written in one."""
    fmt = FORMATS[name]
    assert isinstance(fmt, GroupedFormat)
    return replace(fmt, group=marker.group_size or fmt.group).read


def _float8(name: str) -> StoredFormat:
    fmt = FORMATS[name]
    return StoredFormat(
        codes=fmt.code_dtype,
        companions={
            "weight_scale": Companion(dtypes=FLOATS, shapes=one_or_rows, usable=is_positive),
            "input_scale": INPUT_SCALE,
        },
        decode=lambda marker: fmt.read,
    )


STORED_FORMATS: Mapping[str, StoredFormat] = {
    "float8_e4m3fn": _float8("float8_e4m3fn"),
    "float8_e5m2": _float8("float8_e5m2"),
    "int8_tensorwise": StoredFormat(
        codes=torch.int8,
        companions={
            "weight_scale": Companion(dtypes=FLOATS, shapes=one_or_rows, usable=is_positive),
            "input_scale": INPUT_SCALES,
        },
        rotation="marked",
        needs="ComfyUI 0.27",
        decode=lambda marker: FORMATS["int8_row"].read,
    ),
    "mxfp8": StoredFormat(
        codes=torch.float8_e4m3fn,
        companions={
            "weight_scale": Companion(dtypes=EXPONENTS, shapes=swizzled, usable=is_exponent),
            "input_scale": INPUT_SCALE,
        },
        multiple=(32, 32),
        group_size=32,
        fixed_group=True,
        needs="ComfyUI 0.18",
        decode=lambda marker: FORMATS["mxfp8"].read,
    ),
    BLOCKWISE: StoredFormat(
        codes=torch.int8,
        companions={
            "weight_scale": Companion(dtypes=FLOATS, shapes=blocks, usable=is_positive),
            "input_scale": INPUT_SCALES,
        },
        group_size=128,
        needs="this pack",
        decode=lambda marker: int8_blockwise(marker.group_size or 128).read,
    ),
    "nvfp4": StoredFormat(
        codes=torch.uint8,
        companions={
            "weight_scale": Companion(dtypes=BYTES_OF_E4M3, shapes=swizzled, usable=is_finite),
            "weight_scale_2": Companion(dtypes=(torch.float32,), shapes=one, usable=is_positive),
            "input_scale": INPUT_SCALE,
            "pre_quant_scale": Companion(dtypes=FLOATS, shapes=columns, required=False, usable=is_finite),
        },
        packing=E2M1_NIBBLES.width,
        multiple=(16, 16),
        group_size=16,
        fixed_group=True,
        needs="ComfyUI 0.8; 4-bit products on compute capability 10 and 12, dequantized elsewhere",
        decode=lambda marker: scale_inputs(FORMATS["nvfp4"].read),
    ),
    "convrot_w4a4": StoredFormat(
        codes=torch.int8,
        companions={"weight_scale": Companion(dtypes=(torch.float32,), shapes=rows, usable=is_positive)},
        packing=NIBBLES.width,
        multiple=(1, 64),
        rotation="always",
        needs="ComfyUI 0.28",
        decode=lambda marker: decode_signed,
    ),
    "asym_w4a8_int8": StoredFormat(
        codes=torch.int8,
        companions={**GROUP_SCALES, CODEBOOK: TABLE},
        scale="weight_s_rel",
        packing=NIBBLES.width,
        multiple=(1, 16),
        group_size=16,
        rotation="always",
        needs=FORMATS["w4a8"].needs,
        decode=lambda marker: _grouped("w4a8", marker),
    ),
    "w6a8_int8": StoredFormat(
        codes=torch.int8,
        companions=GROUP_SCALES,
        scale="weight_s_rel",
        packing=SIX_BITS.width,
        multiple=(1, 32),
        group_size=16,
        rotation="always",
        needs=FORMATS["w6a8"].needs,
        decode=lambda marker: _grouped("w6a8", marker),
    ),
    "awq_w4a16": StoredFormat(
        codes=torch.int8,
        companions={
            "weight_scale": Companion(dtypes=FLOATS, shapes=groups_by_column, usable=is_finite),
            "weight_zeros": Companion(dtypes=FLOATS, shapes=groups_by_column, usable=is_finite),
        },
        packing=NIBBLES.width,
        group_size=64,
        needs="a ComfyUI that lists it in QUANT_ALGOS (0.33 does not); takes no LoRA",
        decode=lambda marker: partial(decode_affine, group=marker.group_size or 64),
    ),
}
"""By the name in markers."""

BLOCK_FP8 = "Hugging Face block FP8"
BLOCK_SIZE = 128

UNMARKED_BLOCK_FP8 = StoredFormat(
    codes=torch.float8_e4m3fn,
    companions={"weight_scale_inv": Companion(dtypes=FLOATS, shapes=blocks, usable=is_positive)},
    scale="weight_scale_inv",
    group_size=BLOCK_SIZE,
    decode=lambda marker: (
        ScaledFormat(
            name="block_fp8",
            title=BLOCK_FP8,
            comfyui_name=BLOCK_FP8,
            grid=E4M3,
            granularity=PerBlock(BLOCK_SIZE, BLOCK_SIZE),
            scale_name="weight_scale_inv",
        ).read
    ),
)
"""FP8 with a scale for each 128 x 128 block, as transformers and DeepSeek write it. Despite its name the scale is what
codes are multiplied by. ComfyUI does not load it.
"""

UNMARKED: Mapping[torch.dtype, str] = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8_tensorwise",
}
"""Format of a layer in this dtype without a marker."""

LEGACY_NAMES: Mapping[str, str] = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
"""Names in older ComfyUI files, which have no markers, and the present ones."""
LEGACY_MARK = "scaled_fp8"
"""Empty tensor in older ComfyUI files."""
