"""Facts about the machine code of the products for every architecture, and the file that they are recorded in.

python -m calibrated_rounding.tests.kernels.architectures

writes the file again, for the Triton that is installed. It needs no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from calibrated_rounding.kernels.cases import ProductOutputs
from calibrated_rounding.kernels.gpu import product
from calibrated_rounding.kernels.products import choose_product
from calibrated_rounding.kernels.tiles import GemmShape
from calibrated_rounding.tests.kernels.inputs import operands
from calibrated_rounding.tests.pretend.driver import SHARED, PretendDriver

MODULE = "calibrated_rounding.tests.kernels.architectures"
FILE = Path(__file__).with_name("architectures.json")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Triton has no INT8 product for 7.5."""

ROWS = {"fixed row": ("triton", None, False), "persistent row": ("triton_v2", None, False)}
BLOCKS = {"fixed block 128": ("triton", 128, False), "persistent block 128, quantized": ("triton_v2", 128, True)}
PRODUCTS = ROWS | BLOCKS
"""Backend, block, and whether results are quantized; all with a bias, for many rows."""

CONVERSIONS = ("I2F", "I2FP")
TENSOR_CORES = ("IMMA", "IGMMA", "UTCIMMA")

Facts = dict[str, Any]


def _find_facts(arch: int, name: str) -> Facts:
    """Compile a product.

    Returns:
        "tile" (rows and columns), "spilled" (bytes a thread), "pending" (products that run on while the code waits for
        others; sm90 only), and how many instructions convert integers to floats and multiply on tensor cores.
    """
    backend, block, quantized = PRODUCTS[name]
    outputs = ProductOutputs(dtype=torch.bfloat16, bias=torch.bfloat16, quantized=quantized)
    shape, bias = GemmShape(m=4608, n=3072, k=256, block=block), torch.ones(3072, dtype=torch.bfloat16)
    a, a_scale, b, b_scale = operands(shape.m, shape.n, shape.k, block)
    with PretendDriver(arch) as gpu:
        config = choose_product(backend, shape, outputs, a.device)
        assert config is not None
        if quantized and block:
            product.gemm_quant(config, a, a_scale, b, b_scale, bias, block)
        else:
            product.gemm(config, a, a_scale, b, b_scale, bias, block, outputs.dtype)
    (launch,) = gpu.launches
    assert launch.shared <= SHARED[arch] and not launch.fused
    assert launch.constants["DESCRIPTOR"] == (backend == "triton_v2" and arch >= 90)
    counts = launch.instructions
    return {
        "tile": [launch.constants["ROWS"], launch.constants["COLUMNS"]],
        "spilled": launch.spilled,
        "pending": launch.pending,
        "conversions": sum(counts[name] for name in CONVERSIONS),
        "tensor cores": {name: counts[name] for name in TENSOR_CORES if counts[name]},
    }


def find_facts_alone(arch: int) -> dict[str, Facts]:
    """Return the facts of all `PRODUCTS`, compiled in a process of their own.

    Triton 3.9 compiles differently in a process that has compiled for compute capability 7.5 before.
    """
    command = [sys.executable, "-W", "ignore", "-m", MODULE, str(arch)]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Facts] = json.loads(done.stdout)
    return facts


def read_facts() -> Facts:
    """Read the file: "triton" (its version) and "architectures" (facts by architecture and name)."""
    facts: Facts = json.loads(FILE.read_text(encoding="utf-8"))
    return facts


def record() -> None:
    parts = []
    for arch in ARCHITECTURES:
        rows = ",\n".join(f'   "{name}": {json.dumps(facts)}' for name, facts in find_facts_alone(arch).items())
        parts.append(f'  "sm{arch}": {{\n{rows}\n  }}')
    body = ",\n".join(parts)
    text = f'{{\n "triton": "{triton.__version__}",\n "architectures": {{\n{body}\n }}\n}}\n'
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({name: _find_facts(int(sys.argv[1]), name) for name in PRODUCTS}))
    else:
        record()
