"""The memory of a file that is rounded to nearest: one layer in work, and what waits on both sides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, execution, quantize_file
from calibrated_rounding.quant.files import Checkpoint, CheckpointWriter, open_checkpoint
from calibrated_rounding.quant.files.buffers import BufferPool
from safetensors.torch import save_file
from torch.multiprocessing.reductions import StorageWeakRef

SHAPE = (1024, 1024)
WEIGHT, CODES = 2 << 20, 1 << 20


class Alive:
    """Counts the bytes of tensors that still exist, whichever thread made them."""

    def __init__(self) -> None:
        self.peak = 0
        self._lock = threading.Lock()
        self._storages: list[tuple[StorageWeakRef, int]] = []

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        with self._lock:
            self._storages = [entry for entry in self._storages if not entry[0].expired()]
            self._storages.append((StorageWeakRef(storage), storage.nbytes()))
            self.peak = max(self.peak, sum(size for _, size in self._storages))


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "int8_row", "int8_convrot"])
@pytest.mark.parametrize("slow", ["reading", "writing"])
def test_layer_and_waiting_bytes_bound_memory(
    fmt: str, slow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(SHAPE).bfloat16()
    save_file({f"blocks.{i}.a.weight": weight + i for i in range(12)}, tmp_path / "source.safetensors")
    alive, read, write, quantize = Alive(), Checkpoint.read, CheckpointWriter.write, execution.quantize_layer

    def watch(function: Callable[..., Any], pick: Callable[[Any], torch.Tensor], pause: float) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            time.sleep(pause)
            result = function(*args)
            if result is not None:
                alive.add(pick(result))
            return result

        return call

    monkeypatch.setattr(execution, "WAITING_BYTES", WEIGHT)
    monkeypatch.setattr(Checkpoint, "read", watch(read, lambda tensor: tensor, 0.02 if slow == "reading" else 0))
    monkeypatch.setattr(CheckpointWriter, "write", watch(write, lambda _: _, 0.02 if slow == "writing" else 0))
    monkeypatch.setattr(execution, "quantize_layer", watch(quantize, lambda result: result.codes, 0))
    target = tmp_path / "target.safetensors"
    quantize_file(tmp_path / "source.safetensors", target, Recipe(format=fmt, profile="generic"), force=True)
    assert alive.peak <= WEIGHT + CODES + 2 * execution.WAITING_BYTES
    assert alive.peak >= WEIGHT + CODES


def test_memory_of_a_tensor_is_used_again_when_it_is_gone(tmp_path: Path) -> None:
    tensors = {name: torch.randn(SHAPE) for name in "abc"}
    save_file(tensors, tmp_path / "source.safetensors")
    with open_checkpoint(tmp_path / "source.safetensors") as checkpoint:
        first = checkpoint.read("a")
        view, place = first[5], first.data_ptr()
        del first
        second = checkpoint.read("b")
        assert second.data_ptr() != place
        assert torch.equal(view, tensors["a"][5])
        del view
        third = checkpoint.read("c")
    assert third.data_ptr() == place
    assert torch.equal(second, tensors["b"])
    assert torch.equal(third, tensors["c"])


def test_much_larger_memory_is_not_kept_for_small_tensors() -> None:
    pool = BufferPool()
    large = pool.empty((8 << 20,), torch.uint8)
    place = large.data_ptr()
    del large
    small = pool.empty((1 << 20,), torch.uint8)
    again = pool.empty((8 << 20,), torch.uint8)
    assert len(small.untyped_storage()) < 2 << 20
    assert small.data_ptr() != place
    assert again.numel() == 8 << 20
