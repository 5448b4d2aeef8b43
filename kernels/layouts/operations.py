"""What torch operations do with block-wise INT8 tensors; whatever is not here is computed on the dequantized values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_kitchen.tensor import QuantizedTensor, dequantize_args, register_layout_op
from torch import Tensor

from .. import ops
from ..checks import ACTIVATIONS
from .blockwise import NAME, BlockWiseINT8Layout

Arguments = Sequence[Any]
Options = Mapping[str, Any]
Handler = Callable[[QuantizedTensor, Arguments, Options], Any]

aten = torch.ops.aten
logger = logging.getLogger(__name__)
_told: set[str] = set()


def tell_once(operation: Any) -> None:
    """Log, the first time in this process, that an operation leaves the INT8 path."""
    if str(operation) not in _told:
        _told.add(str(operation))
        logger.warning("calibrated-rounding: %s has no block-wise INT8 kernel; computed in floating point.", operation)


def _linear(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    x, weight = args[:2]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if not _multiplies(x, weight):
        return _dequantized(aten.linear.default, args, kwargs)
    return _product(x, weight._qdata, weight._params.scale, bias, weight)


def _mm(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    x, weight = args
    if not _multiplies(x, weight):
        return _dequantized(aten.mm.default, args, kwargs)
    return _product(x, weight._qdata.t(), weight._params.scale.t(), None, weight)


def _addmm(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    bias, x, weight = args
    scaled = any(factor != 1 for factor in kwargs.values())
    if not _multiplies(x, weight) or scaled or bias.shape != weight.shape[1:]:
        return _dequantized(aten.addmm.default, args, kwargs)
    return _product(x, weight._qdata.t(), weight._params.scale.t(), bias, weight)


def _t(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    return _transpose(qt, (qt, -2, -1), {}) if qt.ndim == 2 else _dequantized(aten.t.default, args, kwargs)


def _transpose(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    """Of the two dimensions that share the blocks."""
    first, second = args[1] % qt.ndim, args[2] % qt.ndim
    if {first, second} != {qt.ndim - 2, qt.ndim - 1}:
        return _dequantized(aten.transpose.int, args, kwargs)
    codes = qt._qdata.transpose(-2, -1)
    return _with(qt, codes, qt._params.scale.transpose(-2, -1))


def _view(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    """To any shape that cuts no block: rows may be split by whole blocks, columns stay together."""
    codes, size = qt._qdata.reshape(args[1]), qt._params.block_size
    if not _keeps_blocks(qt.shape, codes.shape, size):
        return _dequantized(aten.reshape.default, args, kwargs)
    shape = (*codes.shape[:-2], -(-codes.shape[-2] // size), qt._params.scale.shape[-1])
    return _with(qt, codes, qt._params.scale.reshape(shape))


HANDLERS: Mapping[Any, Handler] = {
    aten.linear.default: _linear,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.t.default: _t,
    aten.transpose.int: _transpose,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
}
"""Beside these, comfy-kitchen itself moves, copies, clones and detaches any layout."""


def register() -> None:
    for operation, handler in HANDLERS.items():
        register_layout_op(operation, BlockWiseINT8Layout)(handler)
    _tell_of_fallbacks()


def _multiplies(x: Any, weight: Any) -> bool:
    """Whether the kernels compute a product with ``weight``."""
    ours = isinstance(weight, QuantizedTensor) and weight._layout_cls == NAME
    return ours and weight.ndim == 2 and x.dtype in ACTIVATIONS


def _product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, weight: QuantizedTensor) -> Tensor:
    plain: Tensor = dequantize_args(x)
    rows = plain.reshape(-1, plain.shape[-1])
    product = ops.block_linear(rows, codes, scale, bias, weight._params.block_size)
    return product.reshape(*plain.shape[:-1], codes.shape[0])


def _with(qt: QuantizedTensor, codes: Tensor, scale: Tensor) -> QuantizedTensor:
    params = replace(qt._params, scale=scale, orig_shape=tuple(codes.shape))
    return QuantizedTensor(codes, qt._layout_cls, params)


def _keeps_blocks(old: torch.Size, new: torch.Size, size: int) -> bool:
    if len(new) < 2 or new[-1] != old[-1]:
        return False
    return new[-2] == old[-2] or (new[-2] % size == 0 and old[-2] % size == 0)


def _dequantized(operation: Any, args: Arguments, kwargs: Options) -> Any:
    tell_once(operation)
    return operation(*dequantize_args(tuple(args)), **dequantize_args(dict(kwargs)))


def _tell_of_fallbacks() -> None:
    """Have comfy-kitchen's own fall-back, which takes every operation without a handler, tell of it too.

    Chained and done once, whatever imports the pack; where comfy-kitchen has no such method, it tells at debug level.
    """
    original = getattr(QuantizedTensor, "_dequant_and_fallback", None)
    if original is None or hasattr(original, "calibrated_rounding"):
        return

    def _dequant_and_fallback(cls: type, func: Any, args: Arguments, kwargs: Options) -> Any:
        if any(isinstance(arg, QuantizedTensor) and arg._layout_cls == NAME for arg in _flat(args)):
            tell_once(func)
        return original(func, args, kwargs)

    _dequant_and_fallback.calibrated_rounding = True  # type: ignore[attr-defined]
    QuantizedTensor._dequant_and_fallback = classmethod(_dequant_and_fallback)


def _flat(args: Arguments) -> list[Any]:
    return [inner for arg in args for inner in (arg if isinstance(arg, (list, tuple)) else (arg,))]
