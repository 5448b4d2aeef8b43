"""The launches of the kernels, compiled for every architecture of NVIDIA that the pack supports, without a GPU.

Bounds are facts of the Triton that is installed: another one may change them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calibrated_rounding.kernels.cases import ProductOutputs
from calibrated_rounding.kernels.eager.groups import GroupGrid
from calibrated_rounding.kernels.eager.ldlq import ColumnBlock
from calibrated_rounding.kernels.tables import KernelConfig
from calibrated_rounding.kernels.tiles import DeviceInfo, GemmShape, choose_default_tile
from calibrated_rounding.quant.formats.grids import E4M3, INT8
from calibrated_rounding.tests.kernels.inputs import operands, values

pytest.importorskip("triton")

from calibrated_rounding.kernels import gpu as kernels
from calibrated_rounding.kernels.gpu import groups, ldlq, product
from calibrated_rounding.tests.pretend.driver import PROCESSORS, SHARED, TOOL, PretendDriver

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
PRODUCTS = ARCHITECTURES[1:]
"""Triton has no INT8 product for 7.5."""

SPILLS = {80: 0, 86: 8, 89: 8, 90: 8, 100: 0, 120: 32}
"""Most bytes a thread that the largest persistent tile spills with a bias, scales per row."""
QUANTIZED_SPILLS = {86: 24, 90: 16, 120: 24}
"""The same of the largest tile that quantizes its results in blocks."""


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


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("run", [run_other_kernels, run_ldlq, run_group_ldlq])
def test_kernels_without_products_stay_in_registers(arch: int, run: Callable[[], None]) -> None:
    with PretendDriver(arch) as gpu:
        run()
    assert len(gpu.launches) >= 2
    assert [launch for launch in gpu.launches if launch.spilled or launch.shared > SHARED[arch]] == []


@pytest.mark.parametrize(
    ("arch", "backend"), [*((arch, "triton_v2") for arch in PRODUCTS), (100, "triton"), (80, "triton")]
)
def test_largest_tile_fits_and_spills_little(arch: int, backend: str) -> None:
    device = DeviceInfo(arch=f"sm{arch}", processors=PROCESSORS, shared=SHARED[arch], descriptors=arch >= 90)
    tile = choose_default_tile(GemmShape(m=4608, n=12288, k=3072, block=None), device)
    a, a_scale, b, b_scale = operands(256, 512, 256, None)
    bias, out = torch.ones(512, dtype=torch.bfloat16), torch.empty(256, 512, dtype=torch.bfloat16)
    shape = GemmShape(m=256, n=512, k=256, block=None)
    with PretendDriver(arch) as gpu:
        product.run_product(KernelConfig(backend, tile), shape, a, a_scale, b, b_scale, bias, out, None)
    (launch,) = gpu.launches
    assert launch.constants["DESCRIPTOR"] == (backend == "triton_v2" and arch >= 90)
    assert launch.shared <= SHARED[arch]
    assert launch.spilled <= SPILLS[arch]


@pytest.mark.parametrize("arch", QUANTIZED_SPILLS)
def test_block_products_quantize_their_results_in_registers(arch: int) -> None:
    a, a_scale, b, b_scale = operands(4608, 3072, 256, 128)
    outputs = ProductOutputs(dtype=torch.float32, bias=torch.float32, quantized=True)
    shape = GemmShape(m=4608, n=3072, k=256, block=128)
    with PretendDriver(arch) as gpu:
        config = product.choose_product("triton_v2", shape, outputs, a.device)
        assert config is not None
        product.gemm_quant(config, a, a_scale, b, b_scale, torch.ones(3072), 128)
    (launch,) = gpu.launches
    assert launch.constants["QUANTIZE"] and launch.constants["ROWS"] == 128
    assert launch.shared <= SHARED[arch]
    assert launch.spilled <= QUANTIZED_SPILLS[arch]
