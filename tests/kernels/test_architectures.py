"""The launches of the kernels, compiled for every architecture of NVIDIA that the pack supports, without a GPU.

`architectures` finds facts about the machine code of products, which `architectures.json` holds: another Triton may
change them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calibrated_rounding.kernels.eager.groups import GroupGrid
from calibrated_rounding.kernels.eager.ldlq import ColumnBlock
from calibrated_rounding.quant.formats.grids import E4M3, INT8
from calibrated_rounding.tests.kernels.inputs import values

pytest.importorskip("triton")

import triton
from calibrated_rounding.kernels import gpu as kernels
from calibrated_rounding.kernels.gpu import groups, ldlq
from calibrated_rounding.kernels.gpu.device import SLOW_CONVERSIONS
from calibrated_rounding.tests.kernels.architectures import ARCHITECTURES, PRODUCTS, find_facts_alone, read_facts
from calibrated_rounding.tests.pretend.driver import SHARED, TOOL, PretendDriver

EVERY_ARCHITECTURE = (75, *ARCHITECTURES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not TOOL.exists():
        pytest.skip("this Triton does not bring the tool that reads what was compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def run_other_kernels() -> None:
    """Launch everything but products."""
    x = values(5, 1024, dtype=torch.bfloat16)
    codes, scale = torch.zeros(5, 1024, dtype=torch.int8), torch.ones(5, 8)
    kernels.act_quant(x, 128)
    kernels.act_quant(x, None)
    kernels.act_dequant(codes, scale, 128, torch.bfloat16)
    kernels.int8_gelu(codes, scale, 128, "tanh")
    kernels.rotate_quant(x, 256)
    kernels.weight_quant(values(130, 256, dtype=torch.bfloat16), 128)
    kernels.weight_dequant(torch.zeros(130, 256, dtype=torch.int8), torch.ones(2, 2), 128, torch.bfloat16)


def run_ldlq() -> None:
    weight = values(128, 40)
    for grid in (E4M3, INT8):
        block = ColumnBlock(weight=weight, scale=torch.ones(40).expand(128, 40), grid=grid)
        ldlq.ldlq_block(block, torch.eye(128), weight, torch.empty_like(weight))
        ldlq.descend_block(block, torch.eye(128), weight, torch.empty_like(weight))


def run_group_ldlq() -> None:
    weight = values(16, 40)
    for integer in (True, False):
        grid = GroupGrid.of(torch.arange(-7.0, 8.0), integer)
        groups.round_group(grid, weight, weight, torch.eye(16), torch.ones(16), torch.ones(3, 40))


@pytest.mark.parametrize("arch", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("run", [run_other_kernels, run_ldlq, run_group_ldlq])
def test_kernels_without_products_stay_in_registers(arch: int, run: Callable[[], None]) -> None:
    with PretendDriver(arch) as gpu:
        run()
    assert len(gpu.launches) >= 2
    assert [launch for launch in gpu.launches if launch.spilled or launch.shared > SHARED[arch]] == []
    assert not any(launch.fused for launch in gpu.launches)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_compile_to_recorded_facts(arch: int) -> None:
    recorded = read_facts()
    assert find_facts_alone(arch) == recorded["architectures"][f"sm{arch}"], (
        f"recorded with Triton {recorded['triton']}, this is {triton.__version__}; look at the difference, then "
        "record it: python -m calibrated_rounding.tests.kernels.architectures"
    )


def test_recorded_products_spill_little() -> None:
    for facts in read_facts()["architectures"].values():
        assert facts.keys() == PRODUCTS.keys()
        for name, product in facts.items():
            assert product["spilled"] <= (24 if name == "persistent block 128, quantized" else 0)


def test_only_slow_conversions_are_replaced() -> None:
    """A100 converts 64 sums a chunk by additions; what is left computes addresses."""
    facts = read_facts()["architectures"]
    replaced = {arch for arch, products in facts.items() if products["fixed block 128"]["conversions"] < 64}
    assert replaced == set(SLOW_CONVERSIONS)


def test_h100_waits_for_every_product() -> None:
    """Triton does not keep INT8 products asynchronous there: see DEVELOPMENT.md."""
    assert {product["pending"] for product in read_facts()["architectures"]["sm90"].values()} == {0}
