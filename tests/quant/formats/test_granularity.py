from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant.formats.granularity import Granularity, PerBlock, PerRow, PerTensor
from hypothesis import given
from hypothesis import strategies as st

ALL = pytest.mark.parametrize("granularity", [PerTensor(), PerRow(), PerBlock(1, 32), PerBlock(4, 8)], ids=str)


@ALL
@given(rows=st.integers(1, 40), columns=st.integers(1, 70))
def test_amax_bounds_weights_tightly(granularity: Granularity, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 100 + columns))
    amax = granularity.amax(x)
    assert tuple(amax.shape) == granularity.scale_shape((rows, columns))
    wide = granularity.expand(amax, (rows, columns))
    assert bool((x.abs() <= wide).all())
    # Every scale is reached by one of its weights.
    assert torch.equal(granularity.amax(x.abs() / wide), torch.ones_like(amax))


@ALL
def test_sum_is_the_whole(granularity: Granularity) -> None:
    x = torch.arange(35.0).view(5, 7)
    assert float(granularity.sum(x).sum()) == float(x.sum())
