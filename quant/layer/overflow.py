"""Values that a dtype or a format cannot hold: they are refused by name, never written as infinity or NaN."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import LayerError
from ..files.tensors import dtype_name, is_finite
from ..formats import Format


def refuse_overflow(layer: str, scales: Iterable[Tensor], fmt: Format) -> None:
    """Raise LayerError for scales of a layer that are not finite as they are stored.

    Codes need no check: a layer with NaN or infinity among them has no finite error, and `measurement` refuses it.
    """
    if not is_finite(*scales):
        raise LayerError(
            f"Layer '{layer}' has scales that overflow in {fmt.name}, as its weights are too large; keep it "
            "with exclude, or choose another format."
        )


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype; infinite values and NaN stay.

    Raises:
        LayerError: the dtype cannot hold a value.
    """
    if tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if not is_finite(result) and not torch.equal(result.isfinite(), tensor.isfinite()):
        largest = float(tensor[tensor.isfinite()].abs().amax())
        raise LayerError(
            f"The tensor '{name}' holds values of up to {largest:.3g}, more than {dtype_name(dtype)} can hold; keep it "
            f"in {dtype_name(tensor.dtype)}, with keep_dtype or an override."
        )
    return result
