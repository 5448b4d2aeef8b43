"""Peak memory of calibrated rounding: the Hessian and one more matrix of its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.scales import absmax
from calibrated_rounding.quant.recipe import CalibratedSettings, SvdSettings
from calibrated_rounding.quant.rounding import round_calibrated, round_svd
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WIDTH = 1024
ROWS = 8


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of storages that torch operations made and that are still alive, and keeps the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
    ) -> Any:
        result = func(*args, **kwargs)
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                self._alive.setdefault(reference.cdata, (reference, leaf.untyped_storage().nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with few rows and few input rows: beside them, a square matrix is large."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator), torch.randn(ROWS, WIDTH, generator=generator)


@pytest.mark.parametrize("name", ["int8_row", "float8_e4m3fn"])
def test_calibrated_holds_two_square_matrices(name: str, operands: tuple[torch.Tensor, torch.Tensor]) -> None:
    (weight, inputs), fmt = operands, FORMATS[name]
    scale = absmax(weight, fmt)
    with PeakBytes() as memory:
        round_calibrated(weight, scale, fmt, inputs, CalibratedSettings(passes=1))
    square = 4 * WIDTH**2
    assert 2 * square <= memory.peak < 2.5 * square


def test_svd_ldlq_holds_two_square_matrices(operands: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = operands
    fmt = FORMATS["int8_row"]
    scale = absmax(weight, fmt)
    with PeakBytes() as memory:
        round_svd(weight, scale, fmt, SvdSettings(optimizer="feedback"))
    square = 4 * WIDTH**2
    assert 2 * square <= memory.peak < 2.5 * square
