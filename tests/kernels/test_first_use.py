"""The check of a kernel before its first use."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from calibrated_rounding.kernels import custom_ops, eager, first_use, ops
from calibrated_rounding.kernels.backend import kernel_backend
from calibrated_rounding.kernels.cases import Case
from calibrated_rounding.kernels.errors import KernelError
from calibrated_rounding.tests.kernels.inputs import values

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
X = values(3, 70)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    first_use.forget()
    yield
    first_use.forget()


class Kernel:
    """A kernel that gives ``result`` where 1 is right; counts how often it runs."""

    def __init__(self, result: float = 1.0, error: Exception | None = None) -> None:
        self.result, self.error, self.runs = result, error, 0

    def cases(self) -> list[Case]:
        return [Case(name="kernel", run=self.run, reference=lambda: [torch.ones(2)])]

    def run(self) -> list[torch.Tensor]:
        self.runs += 1
        if self.error is not None:
            raise self.error
        return [torch.full((2,), self.result)]

    def is_usable(self, variant: object = 0, device: torch.device = CPU, backend: str = "auto") -> bool:
        return first_use.is_usable("kernel", device, backend, variant, self.cases)


def test_kernel_is_checked_once_per_variant() -> None:
    kernel = Kernel()
    assert all(kernel.is_usable(variant) for variant in (0, 1, 0, 1))
    assert kernel.runs == 2


@pytest.mark.parametrize("wrong", [Kernel(1.5), Kernel(float("nan")), Kernel(error=RuntimeError("no driver\nmore"))])
def test_wrong_kernel_is_disabled_and_named(wrong: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    assert Kernel().is_usable("right")
    assert not any(wrong.is_usable(variant) for variant in (0, 1, 0, "right"))
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("The Triton kernel kernel is wrong on cpu and not used (")
    assert "`python -m calibrated_rounding.kernels.selftest`" in message and "\n" not in message
    with pytest.raises(KernelError, match=r"'triton' cannot run: kernel is wrong on cpu .* choose auto or eager"):
        wrong.is_usable(backend="triton")


def test_full_memory_is_no_verdict() -> None:
    kernel = Kernel(error=torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        kernel.is_usable()
    kernel.error = None
    assert kernel.is_usable()


def test_nothing_is_checked_during_capture(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernel, capturing = Kernel(), True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not kernel.is_usable(device=GPU) and not kernel.is_usable(device=GPU, backend="triton")
    assert kernel.runs == 0
    (record,) = caplog.records
    assert "run the model once before capturing" in record.getMessage()
    capturing = False
    assert kernel.is_usable(device=GPU)
    capturing = True
    assert kernel.is_usable(device=GPU) and kernel.runs == 1


def test_threads_wait_for_one_check() -> None:
    kernel, started = Kernel(), threading.Barrier(8)
    results: list[bool] = []

    def use() -> None:
        started.wait()
        results.append(kernel.is_usable())

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8 and kernel.runs == 1


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Triton seems to run, but its quantization is wrong by a factor."""
    gpu = pytest.importorskip("calibrated_rounding.kernels.gpu")
    launched: list[str] = []

    def quantize(x: torch.Tensor, block: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        launched.append("act_quant")
        codes, scale = eager.act_quant(x, block)
        return codes, scale * 1.01

    monkeypatch.setattr(gpu, "act_quant", quantize)
    monkeypatch.setattr(custom_ops, "runs_triton", lambda backend, x: backend not in ("eager", "reference"))
    return launched


def test_reference_replaces_broken_kernel(broken: list[str]) -> None:
    for _ in range(2):
        codes, scale = ops.act_quant(X, 64)
        assert torch.equal(codes, eager.act_quant(X, 64)[0]) and torch.equal(scale, eager.act_quant(X, 64)[1])
    assert broken == ["act_quant"]
    with kernel_backend("triton"), pytest.raises(KernelError, match="act_quant is wrong on cpu"):
        ops.act_quant(X, 64)


def test_layer_with_broken_kernel_is_dequantized(broken: list[str]) -> None:
    w = ops.act_quant(values(40, 70, seed=1), None)[0], torch.ones(1, 1)
    assert torch.equal(ops.block_linear(X, *w, None, 128), eager.dequantized_linear(X, *w, None, 128))


def test_compiled_function_checks_kernel_too(broken: list[str]) -> None:
    compiled = torch.compile(lambda x: ops.act_quant(x, None)[1] * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(X), eager.act_quant(X, None)[1] * 2)
    assert broken == ["act_quant"]
