from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from calibrated_rounding.kernels import backend
from calibrated_rounding.kernels.errors import KernelError


def on_gpu(index: int = 0) -> torch.Tensor:
    """Make a stand-in for a tensor on a GPU; only its device is used."""
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def forget() -> object:
    backend.find_obstacle.cache_clear()
    yield
    backend.find_obstacle.cache_clear()


def test_selection_ends_with_its_block() -> None:
    before = backend.get_kernel_backend()
    with backend.kernel_backend("eager"):
        assert backend.get_kernel_backend() == "eager"
        with pytest.raises(KeyError), backend.kernel_backend("triton_v2"):
            assert backend.get_kernel_backend() == "triton_v2"
            raise KeyError
        assert backend.get_kernel_backend() == "eager"
    assert backend.get_kernel_backend() == before


def test_unknown_name_is_refused() -> None:
    before = backend.get_kernel_backend()
    with pytest.raises(KernelError, match=r"'cuda'.*auto, triton, triton_v2, eager, reference"):
        backend.set_kernel_backend("cuda")
    assert backend.get_kernel_backend() == before


@pytest.mark.parametrize("name", backend.NAMES)
def test_cpu_tensors_are_eager(name: str) -> None:
    assert not backend.runs_triton(name, torch.ones(1))


def test_missing_triton_warns_or_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        assert not backend.runs_triton("auto", on_gpu())
    assert [record.message for record in caplog.records] == [
        "INT8 products on cuda:0 run without Triton, in PyTorch: Triton is not installed."
    ]
    with pytest.raises(KernelError, match="cannot run: Triton is not installed; choose auto or eager"):
        backend.runs_triton("triton", on_gpu())
    assert not backend.runs_triton("eager", on_gpu())


def test_triton_without_driver_counts_as_absent() -> None:
    """With Triton installed and a tensor that claims to be on a GPU: Triton is not even imported."""
    code = (
        "import sys, torch; from calibrated_rounding.kernels import backend\n"
        "torch.cuda.is_available = lambda: False; backend.importlib.util.find_spec = lambda name: object()\n"
        "print(backend.find_obstacle(torch.device('cuda', 0)), 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "there is no GPU driver False\n"


def test_old_gpus_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backend.find_obstacle(torch.device("cuda", 0)) == "the GPU is older than compute capability 8.0"


def test_ldlq_needs_no_int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """RTX 20: Triton compiles the kernels of LDLQ there, and no INT8 product."""
    gpu = pytest.importorskip("calibrated_rounding.kernels.gpu")
    launched = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.empty(shape))
    monkeypatch.setattr(gpu, "act_quant", lambda x, block: launched.append("act_quant") or (x, x))
    assert backend.runs_triton("auto", on_gpu(), backend.LDLQ)
    assert launched == ["act_quant"]
    assert not backend.runs_triton("auto", on_gpu())


def test_failing_triton_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_find_obstacle", lambda device, work: "no C compiler" if device.index else None)
    assert backend.runs_triton("auto", on_gpu(0))
    assert not backend.runs_triton("auto", on_gpu(1))


def test_environment_selects_backend() -> None:
    code = (
        "import torch; from calibrated_rounding.kernels import ops, backend; print(backend.get_kernel_backend())\n"
        "try: ops.act_quant(torch.ones(1, 16), None)\n"
        "except ValueError as error: print(error)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, backend.VARIABLE: name},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for name in ("eager", "fast")
    ]
    assert outputs[0] == "eager\n"
    assert outputs[1].startswith("fast\nKernel backend 'fast' (of CALIBRATED_ROUNDING_KERNELS")
