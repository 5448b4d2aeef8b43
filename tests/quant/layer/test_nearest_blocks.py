"""Nearest rounding in blocks of rows: the bytes of the whole weight."""

from __future__ import annotations

import pytest
import torch
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.formats import FORMATS, GroupedFormat, codebook
from calibrated_rounding.quant.layer import operands
from calibrated_rounding.quant.layer.operands import load_weight
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask
from calibrated_rounding.quant.parallel import crew


@pytest.mark.parametrize("tails", [1, 5])
@pytest.mark.parametrize("scale", ["absmax", "mse"])
@pytest.mark.parametrize("name", ["w4a8", "w6a8", "nvfp4"])
def test_blocks_give_bytes_of_whole_weight(name: str, scale: str, tails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With normal weights and heavy tails, which get a codebook fitted to a sample of the rows."""
    monkeypatch.setattr(codebook, "ROW_SAMPLE", 300 * 256)
    monkeypatch.setattr(operands, "CPU_BLOCK_ELEMENTS", 1 << 13)
    fmt = FORMATS[name]
    assert isinstance(fmt, GroupedFormat)
    weight = torch.randn(777, 256, generator=torch.Generator().manual_seed(tails)).pow(tails).to(torch.bfloat16)
    group = 256 if fmt.rotated else None
    task = LayerTask(name="l", weight=weight, format=fmt, group=group, recipe=Recipe(format=name, scale=scale))
    result = quantize_layer(task)
    with crew():  # as the engine does: on several threads torch sums a rotation in another order
        whole = load_weight(task)
        expected = fmt.find_scale(whole, scale)
        assert torch.equal(result.codes, fmt.round(whole, expected))
    found, reference = fmt.pack(result.codes, result.scale), fmt.pack(result.codes, expected)
    assert found.keys() == reference.keys()
    for key, tensor in found.items():
        first, second = (x.reshape(-1).view(torch.uint8) for x in (tensor, reference[key]))
        assert torch.equal(first, second), key
