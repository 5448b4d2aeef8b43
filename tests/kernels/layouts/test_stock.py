"""The option that has stock INT8 layers computed by the pack's kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import comfy_kitchen
import pytest
import torch
from calibrated_rounding.kernels import layouts
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.kernels.layouts import stock
from comfy_kitchen.tensor import QuantizedTensor

PRIORITY = list(comfy_kitchen.registry._priority)


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    stock.disable()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The rotation group of every product that the pack's per-row kernel computes."""
    seen: list[int | None] = []
    row_linear = layouts.stock.ops.row_linear

    def counted(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: object, group: int | None) -> object:
        seen.append(group)
        return row_linear(x, codes, scale, bias, group)

    monkeypatch.setattr(layouts.stock.ops, "row_linear", counted)
    return seen


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


KINDS = {
    "per tensor": {},
    "per row": {"per_channel": True},
    "rotated": {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
}


def test_disabled_by_default(rows: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stock.VARIABLE, raising=False)
    stock.apply_setting()
    assert comfy_kitchen.registry._priority == PRIORITY
    torch.nn.functional.linear(randn(5, 256), QuantizedTensor.from_float(randn(384, 256), "TensorWiseINT8Layout"))
    assert rows == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 256), (2, 3, 256)])
def test_stock_layers_run_here_while_enabled(
    kind: str, shape: tuple[int, ...], rows: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = QuantizedTensor.from_float(randn(384, 256), "TensorWiseINT8Layout", **KINDS[kind])
    x, bias = randn(*shape, seed=1), randn(384, seed=2)
    before = torch.nn.functional.linear(x, weight, bias)
    monkeypatch.setenv(stock.VARIABLE, "on")
    stock.apply_setting()
    stock.enable()
    assert comfy_kitchen.registry._priority == [stock.BACKEND, *PRIORITY]
    during = torch.nn.functional.linear(x, weight, bias)
    assert rows == [64 if kind == "rotated" else None]
    exact = torch.nn.functional.linear(x.float(), weight.dequantize().float(), bias.float())
    assert float((during - exact).norm()) < 1.02 * float((before - exact).norm())
    monkeypatch.setenv(stock.VARIABLE, "off")
    stock.apply_setting()
    assert comfy_kitchen.registry._priority == PRIORITY
    assert torch.equal(torch.nn.functional.linear(x, weight, bias), before)
    assert len(rows) == 1


def test_unsupported_calls_reach_next_backend(rows: list[int | None]) -> None:
    codes, scale = comfy_kitchen.registry.get_implementation("quantize_int8_rowwise")(randn(384, 256).float())
    x = randn(5, 256, seed=1)
    cases = {"input_act": {"input_act": "gelu_tanh"}, "out_dtype": {"out_dtype": torch.float32}}
    expected = {name: comfy_kitchen.int8_linear(x, codes, scale, **case) for name, case in cases.items()}
    stock.enable()
    for name, case in cases.items():
        assert torch.equal(comfy_kitchen.int8_linear(x, codes, scale, **case), expected[name])
    assert rows == []


@pytest.mark.parametrize(
    ("table", "wins"),
    [({"stock_int8_speedup": 1.3}, True), ({"stock_int8_speedup": 0.9}, False), ({}, False), ([], False)],
)
def test_auto_enables_only_measured_speedups(
    table: object, wins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sm89.json").write_text(json.dumps(table))
    monkeypatch.setattr(stock.tables, "PACKAGED", tmp_path)
    monkeypatch.setattr(stock, "_find_architecture", lambda: "sm89")
    stock.enable_if_faster()
    assert (stock.BACKEND in comfy_kitchen.registry._priority) is wins


def test_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stock.VARIABLE, "yes")
    with pytest.raises(KernelError, match=f"{stock.VARIABLE} is 'yes'; choose auto, on, off"):
        stock.apply_setting()
