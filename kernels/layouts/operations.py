"""Torch operations on block-wise INT8 tensors. All others are computed on the dequantized values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_kitchen.tensor import QuantizedTensor, dequantize_args, register_layout_op
from torch import Tensor

from .. import ops
from ..checks import ACTIVATION_DTYPES
from .blockwise import NAME, BlockWiseINT8Layout

Arguments = Sequence[Any]
Options = Mapping[str, Any]
Handler = Callable[[QuantizedTensor, Arguments, Options], Any]

aten = torch.ops.aten
logger = logging.getLogger(__name__)
_warned: set[str] = set()


def warn_once(operation: Any) -> None:
    """Log that an operation leaves the INT8 path, once per process and operation."""
    if str(operation) not in _warned:
        _warned.add(str(operation))
        logger.warning("calibrated-rounding: %s has no block-wise INT8 kernel; computed in floating point.", operation)


def _linear(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    x, weight = args[:2]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if not _can_multiply(x, weight):
        return _run_dequantized(aten.linear.default, args, kwargs)
    return _multiply(x, weight._qdata, weight._params.scale, bias, weight)


def _mm(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    x, weight = args
    if not _can_multiply(x, weight):
        return _run_dequantized(aten.mm.default, args, kwargs)
    return _multiply(x, weight._qdata.t(), weight._params.scale.t(), None, weight)


def _addmm(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    bias, x, weight = args
    scaled = any(factor != 1 for factor in kwargs.values())
    if not _can_multiply(x, weight) or scaled or bias.shape != weight.shape[1:]:
        return _run_dequantized(aten.addmm.default, args, kwargs)
    return _multiply(x, weight._qdata.t(), weight._params.scale.t(), bias, weight)


def _t(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    return _transpose(qt, (qt, -2, -1), {}) if qt.ndim == 2 else _run_dequantized(aten.t.default, args, kwargs)


def _transpose(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    """Transpose the two dimensions of the blocks; others are computed on floats."""
    first, second = args[1] % qt.ndim, args[2] % qt.ndim
    if {first, second} != {qt.ndim - 2, qt.ndim - 1}:
        return _run_dequantized(aten.transpose.int, args, kwargs)
    codes = qt._qdata.transpose(-2, -1)
    return _replace_data(qt, codes, qt._params.scale.transpose(-2, -1))


def _view(qt: QuantizedTensor, args: Arguments, kwargs: Options) -> Any:
    """View in any shape that cuts no block: rows may be split by whole blocks, columns stay together."""
    codes, size = qt._qdata.reshape(args[1]), qt._params.block_size
    if not _keeps_blocks(qt.shape, codes.shape, size):
        return _run_dequantized(aten.reshape.default, args, kwargs)
    shape = (*codes.shape[:-2], -(-codes.shape[-2] // size), qt._params.scale.shape[-1])
    return _replace_data(qt, codes, qt._params.scale.reshape(shape))


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
"""In addition, comfy-kitchen itself moves, copies, clones and detaches any layout."""


def register() -> None:
    """Register all handlers with comfy-kitchen."""
    for operation, handler in HANDLERS.items():
        register_layout_op(operation, BlockWiseINT8Layout)(handler)
    _log_fallbacks()


def _can_multiply(x: Any, weight: Any) -> bool:
    """Return whether the kernels compute a product with ``weight``."""
    ours = isinstance(weight, QuantizedTensor) and weight._layout_cls == NAME
    return ours and weight.ndim == 2 and x.dtype in ACTIVATION_DTYPES


def _multiply(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, weight: QuantizedTensor) -> Tensor:
    plain: Tensor = dequantize_args(x)
    rows = plain.reshape(-1, plain.shape[-1])
    product = ops.block_linear(rows, codes, scale, bias, weight._params.block_size)
    return product.reshape(*plain.shape[:-1], codes.shape[0])


def _replace_data(qt: QuantizedTensor, codes: Tensor, scale: Tensor) -> QuantizedTensor:
    params = replace(qt._params, scale=scale, orig_shape=tuple(codes.shape))
    return QuantizedTensor(codes, qt._layout_cls, params)


def _keeps_blocks(old: torch.Size, new: torch.Size, size: int) -> bool:
    if len(new) < 2 or new[-1] != old[-1]:
        return False
    return new[-2] == old[-2] or (new[-2] % size == 0 and old[-2] % size == 0)


def _run_dequantized(operation: Any, args: Arguments, kwargs: Options) -> Any:
    warn_once(operation)
    return operation(*dequantize_args(tuple(args)), **dequantize_args(dict(kwargs)))


def _log_fallbacks() -> None:
    """Wrap comfy-kitchen's own fall-back, which takes every operation without a handler, so that it warns too.

    Wrapped once, however often the pack is imported. A comfy-kitchen without this method logs at debug level.
    """
    original = getattr(QuantizedTensor, "_dequant_and_fallback", None)
    if original is None or hasattr(original, "calibrated_rounding"):
        return

    def _dequant_and_fallback(cls: type, func: Any, args: Arguments, kwargs: Options) -> Any:
        if any(isinstance(arg, QuantizedTensor) and arg._layout_cls == NAME for arg in _flatten(args)):
            warn_once(func)
        return original(func, args, kwargs)

    _dequant_and_fallback.calibrated_rounding = True  # type: ignore[attr-defined]
    QuantizedTensor._dequant_and_fallback = classmethod(_dequant_and_fallback)


def _flatten(args: Arguments) -> list[Any]:
    return [inner for arg in args for inner in (arg if isinstance(arg, (list, tuple)) else (arg,))]
