"""Computing on several threads: the same bits whatever their number, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask, QuantizedLayer
from calibrated_rounding.quant.parallel import BLOCK, blocks, crew, matmul, run_all
from calibrated_rounding.quant.rounding.cholesky import factorize

Result = TypeVar("Result")

ROUNDINGS = {
    "nearest": Recipe(rounding="nearest"),
    "svd": Recipe.from_dict({"rounding": "svd", "svd": {"iterations": 5}}),
    "svd_feedback": Recipe.from_dict({"rounding": "svd", "svd": {"optimizer": "feedback", "metric": "inputs"}}),
    "calibrated": Recipe(rounding="calibrated"),
    "calibrated_auto_scale": Recipe(rounding="calibrated", scale="auto"),
}
SHAPE = (1088, 512)
"""More rows than one thread rounds at a time, and more columns than a block of a factorization."""


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def with_threads(count: int, work: Callable[[], Result]) -> Result:
    torch.set_num_threads(count)
    result = work()
    assert torch.get_num_threads() == count
    return result


def in_thread(work: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, which may be a scalar."""
    return x.reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def operands() -> tuple[torch.Tensor, InputStatistics]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=generator).mul_(0.02).to(torch.bfloat16)
    rows = torch.randn(300, 64, generator=generator) @ torch.randn(64, SHAPE[1], generator=generator)
    return weight, InputStatistics(rows=rows.to(torch.bfloat16), absmax=float(rows.abs().max()))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_same_bytes_on_any_number_of_threads(
    fmt: str, rounding: str, operands: tuple[torch.Tensor, InputStatistics]
) -> None:
    weight, stats = operands
    group = 256 if FORMATS[fmt].rotated else None
    task = LayerTask(
        name="l", weight=weight, format=FORMATS[fmt], group=group, recipe=ROUNDINGS[rounding], inputs=stats
    )

    def run() -> QuantizedLayer:
        return quantize_layer(task).add_errors(seconds=0.0)

    torch.set_num_threads(2)
    results = [in_thread(run), *(with_threads(count, run) for count in (1, 2, 4))]
    first = results[0]
    stored = [task.format.pack(result.codes, result.scale) for result in results]
    for result, tensors in zip(results[1:], stored[1:], strict=True):
        for name, tensor in tensors.items():
            assert torch.equal(as_bytes(tensor), as_bytes(stored[0][name])), name
        assert result.errors == first.errors
        tensors = {"codes": first.codes, "scale": first.scale, "output_squares": first.output_squares}
        assert replace(result, **tensors) == first


def test_new_threads_keep_their_number() -> None:
    torch.set_num_threads(3)
    with crew():
        assert torch.get_num_threads() == 1
        assert in_thread(torch.get_num_threads) == 3
        with crew():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    assert in_thread(torch.get_num_threads) == 3


def test_several_callers_have_their_own_threads() -> None:
    torch.set_num_threads(2)
    together = threading.Barrier(3)

    def work() -> list[int]:
        with crew():
            together.wait(30)
            return run_all(lambda i: i * i, range(100))

    with ThreadPoolExecutor(3) as pool:
        results = [future.result() for future in [pool.submit(work) for _ in range(3)]]
    assert results == [[i * i for i in range(100)]] * 3


def test_calls_may_be_nested() -> None:
    torch.set_num_threads(4)
    with crew():
        result = run_all(lambda i: sum(run_all(lambda j: i * j, range(20))), range(20))
    assert result == [190 * i for i in range(20)]


@pytest.mark.parametrize("count", [1, 4])
def test_first_error_is_raised_and_no_thread_is_left(count: int) -> None:
    torch.set_num_threads(count)
    before = threading.active_count()

    def fail(i: int) -> int:
        if i in (3, 5):
            raise ValueError(str(i))
        return i

    with pytest.raises(ValueError, match="3"), crew():
        run_all(fail, range(1000))
    assert threading.active_count() == before
    assert torch.get_num_threads() == count


def test_threads_write_into_inference_tensors() -> None:
    torch.set_num_threads(2)
    with torch.inference_mode(), crew():
        left, right = torch.randn(3 * BLOCK, 8), torch.randn(8, 5)
        assert torch.allclose(matmul(left, right), left @ right)


@pytest.mark.parametrize("width", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
def test_blocked_factor_is_a_cholesky_factor(width: int) -> None:
    rows = torch.randn(width + 10, width, generator=torch.Generator().manual_seed(0))
    hessian = rows.T @ rows / width + 0.1 * torch.eye(width)
    factor = factorize(hessian).tril()
    assert torch.allclose(factor @ factor.T, hessian, atol=1e-4)
    assert torch.allclose(factor, torch.linalg.cholesky(hessian), atol=1e-3)


def test_blocks_cover_a_length() -> None:
    assert blocks(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert blocks(0, 3) == []
