"""Compiles every kernel for GPUs that need not be present: a GPU may refuse what Triton's interpreter accepts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.kernels.tiles import DeviceInfo, GemmShape, Tile, choose_default_tile
from calibrated_rounding.quant.formats.grids import E4M3, E5M2, INT8, Grid

triton = pytest.importorskip("triton")

from calibrated_rounding.kernels.gpu import groups as group_launcher  # noqa: E402
from calibrated_rounding.kernels.gpu import ldlq as launcher  # noqa: E402
from calibrated_rounding.kernels.gpu.device import OPTIONS  # noqa: E402
from calibrated_rounding.kernels.gpu.jit import groups, ldlq, product, quantize, rotation  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
A100 = DeviceInfo(arch="sm80", processors=108, shared=166_912, descriptors=False)
H200 = DeviceInfo(arch="sm90", processors=132, shared=232_448, descriptors=True)
POINTERS = {"codes": "*i8", "scale": "*fp32", "x_scale": "*fp32", "a_scale": "*fp32", "b_scale": "*fp32"}
POINTERS |= {"out_scale": "*fp32", "bias": "*bf16", "a": "*i8", "b": "*i8"}


@dataclass(frozen=True)
class Compiled:
    ptx: str
    shared: int
    spilled: int


def compiled(
    kernel: Any,
    device: DeviceInfo,
    constants: Mapping[str, Any],
    types: Mapping[str, str],
    warps: int,
    stages: int,
    folder: Path,
) -> Compiled:
    """``constants`` are the kernel's capitals and absent arguments; other arguments are `POINTERS`, ``types``, or
    32-bit multiples of 16.
    """
    names = kernel.arg_names
    known = POINTERS | dict(types)
    signature = {name: "constexpr" if name in constants else known.get(name, "i32") for name in names}
    aligned = [name for name, kind in signature.items() if kind[0] in "*i" and name not in ("M", "count")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", int(device.arch.removeprefix("sm")), 32)
    done = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages} | OPTIONS)
    binary = folder / "kernel.cubin"
    binary.write_bytes(done.asm["cubin"])
    usage = subprocess.run([TOOL, "-res-usage", binary], capture_output=True, text=True, check=True)
    stack = re.search(r"STACK:(\d+)", usage.stdout + usage.stderr)
    assert stack is not None
    return Compiled(done.asm["ptx"], done.metadata.shared, int(stack[1]))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not TOOL.exists():
        pytest.skip("this Triton does not bring the tool that reads what was compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("device", [A100, H200], ids=lambda device: device.arch)
@pytest.mark.parametrize("m", [1, 77, 4608])
@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("backend", ["fixed", "persistent"])
def test_products_run_on_tensor_cores(device: DeviceInfo, m: int, block: int | None, backend: str, cache: Path) -> None:
    tile = choose_default_tile(GemmShape(m=m, n=3072, k=3072, block=block), device)
    result = compiled_product(backend, device, tile, block, m, False, cache)
    instruction = r"wgmma\.mma_async\S*s32\.s8\.s8" if device is H200 and m > 16 else r"mma\.sync\S*s32\.s8\.s8"
    assert re.search(instruction, result.ptx)
    assert result.shared <= device.shared
    assert result.spilled <= 16
    # Sums of blocks are fused by name; sums of rows are the reference's, bit for bit.
    assert ("fma.rn.f32" in result.ptx) == (block is not None)
    assert ("cp.async.bulk.tensor" in result.ptx) == (backend == "persistent" and device.descriptors)


@pytest.mark.parametrize("device", [A100, H200], ids=lambda device: device.arch)
def test_quantized_products_fit_and_do_not_spill(device: DeviceInfo, cache: Path) -> None:
    tile = choose_default_tile(GemmShape(m=4608, n=3072, k=3072, block=128), device)
    result = compiled_product("persistent", device, tile, 128, 4608, True, cache)
    assert result.shared <= device.shared
    assert result.spilled <= 16


def compiled_product(
    backend: str, device: DeviceInfo, tile: Tile, block: int | None, m: int, quantized: bool, folder: Path
) -> Compiled:
    described = backend == "persistent" and device.descriptors
    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "ORDER": tile.order}
    constants |= {"BLOCK": block or 0, "DESCRIPTOR": described, "EVEN": True, "SCALAR": False}
    constants |= {
        "BIAS": quantized,
        "QUANTIZE": quantized,
        "BIASED": block is not None and not quantized and device is A100,
    }
    # What is not given comes as None, which Triton takes as a constant.
    constants |= {} if quantized else {"bias": None, "out_scale": None}
    types = {"out": "*i8" if quantized else "*bf16"}
    if described:
        types |= {
            "a": f"tensordesc<i8[{tile.rows}, {tile.depth}]>",
            "b": f"tensordesc<i8[{tile.columns}, {tile.depth}]>",
        }
    return compiled(getattr(product, backend), device, constants, types, tile.warps, tile.stages, folder)


@pytest.mark.parametrize("device", [A100, H200], ids=lambda device: device.arch)
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "i8"])
@pytest.mark.parametrize(("groups", "block"), [(1, 4096), (32, 128)])
def test_activations_move_in_16_bytes(device: DeviceInfo, dtype: str, groups: int, block: int, cache: Path) -> None:
    constants = {"GROUPS": groups, "BLOCK": block, "GELU": dtype == "i8", "TANH": False}
    result = compiled(quantize.quantize, device, constants, {"x": f"*{dtype}"}, 4, 3, cache)
    assert "ld.global.v4.b32" in result.ptx and "st.global.v4.b32" in result.ptx
    assert dtype == "i8" or "fma.rn.f32" not in result.ptx
    assert result.spilled == 0


@pytest.mark.parametrize("device", [A100, H200], ids=lambda device: device.arch)
def test_other_kernels_do_not_spill(device: DeviceInfo, cache: Path) -> None:
    cases = (
        (quantize.dequantize, {"ROWS": 128, "GROUPS": 32, "BLOCK": 128}, {"out": "*bf16"}),
        (quantize.quantize_weight, {"BLOCK": 128}, {"w": "*bf16"}),
        (rotation.rotate_quantize, {"GROUPS": 16, "GROUP": 256, "STEPS": 4}, {"x": "*bf16"}),
    )
    for kernel, constants, types in cases:
        result = compiled(kernel, device, constants, types, 8, 3, cache)
        assert result.spilled == 0
        assert "fma.rn.f32" not in result.ptx


@pytest.mark.parametrize("device", [A100, H200], ids=lambda device: device.arch)
@pytest.mark.parametrize("grid", [INT8, E4M3, E5M2], ids=["int8", "e4m3", "e5m2"])
@pytest.mark.parametrize(("descend", "limited"), [(False, False), (False, True), (True, False)])
def test_ldlq_stays_in_registers_and_float32(
    device: DeviceInfo, grid: Grid, descend: bool, limited: bool, cache: Path
) -> None:
    constants = {"BLOCK": launcher.BLOCK, "TILE": launcher.TILE, "DESCEND": descend, "LIMITED": limited}
    constants |= {"MAXIMUM": grid.maximum, "MANTISSA_BITS": grid.mantissa_bits}
    constants |= {"SMALLEST_EXPONENT": grid.smallest_exponent, "scale_step": 1, "matrix_step": 1}
    types = dict.fromkeys(("start", "weight", "low", "high", "matrix", "errors"), "*fp32")
    result = compiled(ldlq.round_columns, device, constants, types, launcher.WARPS, 3, cache)
    assert result.spilled == 0
    assert "tf32" not in result.ptx
    assert not re.search(r"\bfma\.", result.ptx)
    assert "div.rn.f32" in result.ptx and "div.full" not in result.ptx and "ftz" not in result.ptx


@pytest.mark.parametrize("device", [A100, H200], ids=lambda device: device.arch)
@pytest.mark.parametrize("integer", [False, True], ids=["e2m1", "integer"])
def test_group_ldlq_stays_in_registers_and_float32(device: DeviceInfo, integer: bool, cache: Path) -> None:
    constants = {"COLUMNS": 16, "TILE": group_launcher.TILE, "INTEGER": integer, "factor_step": 1, "pivots_stride": 1}
    types = dict.fromkeys(("weight", "targets", "factor", "pivots", "scales", "levels", "errors"), "*fp32")
    types |= {"chosen_scale": "*fp32", "chosen_cost": "*fp32", "places": "*i32", "density": "fp32", "offset": "fp32"}
    result = compiled(groups.round_group, device, constants, types, group_launcher.WARPS, 3, cache)
    assert result.spilled == 0
    assert "tf32" not in result.ptx
    assert not re.search(r"\bfma\.", result.ptx)
    assert "div.rn.f32" in result.ptx and "div.full" not in result.ptx and "ftz" not in result.ptx
