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
    """Stands for a tensor on a GPU, of which only the device is looked at."""
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def forget() -> object:
    backend.why_no_triton.cache_clear()
    yield
    backend.why_no_triton.cache_clear()


def test_a_choice_holds_until_the_next_or_the_end_of_its_block() -> None:
    before = backend.get_kernel_backend()
    with backend.kernel_backend("eager"):
        assert backend.get_kernel_backend() == "eager"
        with pytest.raises(KeyError), backend.kernel_backend("triton_v2"):
            assert backend.get_kernel_backend() == "triton_v2"
            raise KeyError
        assert backend.get_kernel_backend() == "eager"
    assert backend.get_kernel_backend() == before


def test_an_unknown_name_is_refused_and_changes_nothing() -> None:
    before = backend.get_kernel_backend()
    with pytest.raises(KernelError, match=r"'cuda'.*auto, triton, triton_v2, eager"):
        backend.set_kernel_backend("cuda")
    assert backend.get_kernel_backend() == before


@pytest.mark.parametrize("name", backend.NAMES)
def test_tensors_of_the_cpu_are_eager(name: str) -> None:
    assert not backend.runs_triton(name, torch.ones(1))


def test_without_triton_auto_is_eager_with_a_warning_and_triton_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        assert not backend.runs_triton("auto", on_gpu())
    assert [record.message for record in caplog.records] == [
        "INT8 products and error feedback on cuda:0 run without Triton, slowly: Triton is not installed."
    ]
    with pytest.raises(KernelError, match="cannot run: Triton is not installed; choose auto or eager"):
        backend.runs_triton("triton", on_gpu())
    assert not backend.runs_triton("eager", on_gpu())


def test_gpus_without_int8_tensor_cores_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backend.why_no_triton(torch.device("cuda", 0)) == "the GPU is older than compute capability 8.0"


def test_a_triton_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_obstacle", lambda device: "no C compiler" if device.index else None)
    assert backend.runs_triton("auto", on_gpu(0))
    assert not backend.runs_triton("auto", on_gpu(1))


def test_the_environment_chooses_and_a_wrong_name_is_told_at_the_first_use() -> None:
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
