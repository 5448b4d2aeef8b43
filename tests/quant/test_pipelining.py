"""Reading ahead and writing behind: order, bounded bytes, errors in their place, and no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.quant.errors import Cancelled, CheckpointError
from calibrated_rounding.quant.files import CheckpointWriter
from calibrated_rounding.quant.pipelining import ReadAhead, write_behind
from calibrated_rounding.quant.reports.progress import Progress
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def leave_no_thread() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def never() -> None:
    return None


def wait_until_idle(values: list[int]) -> int:
    """Wait until a list no longer grows; returns its length."""
    length = -1
    while length != len(values):
        length = len(values)
        time.sleep(0.1)
    return length


def test_results_come_in_order() -> None:
    reader = ReadAhead(lambda i: i * i, range(50), size=lambda i: i % 7, limit=10)
    assert list(reader.results(never)) == [(i, i * i) for i in range(50)]


def test_reader_stays_within_its_bytes() -> None:
    loaded = list[int]()
    reader = ReadAhead(loaded.append, range(20), size=lambda i: 10, limit=30)
    with closing(reader.results(never)) as results:
        next(results)
        assert wait_until_idle(loaded) == 1 + 3
        next(results)
        assert wait_until_idle(loaded) == 2 + 3


def test_large_item_is_read_alone() -> None:
    reader = ReadAhead(lambda i: i, [5, 100, 5], size=lambda i: i, limit=30)
    assert [item for item, _ in reader.results(never)] == [5, 100, 5]


def test_error_of_reader_comes_in_its_place() -> None:
    def load(i: int) -> int:
        if i == 3:
            raise ValueError("broken")
        return i

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for item, _ in ReadAhead(load, range(9), size=lambda i: 0, limit=1).results(never):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_waiting_caller_is_cancelled() -> None:
    release = threading.Event()

    def stop() -> None:
        release.set()
        raise Cancelled("stop")

    reader = ReadAhead(lambda i: release.wait(30), range(2), size=lambda i: 0, limit=1)
    with pytest.raises(Cancelled):
        list(reader.results(stop))


def test_jobs_are_done_in_order_before_the_end() -> None:
    done = list[int]()
    with write_behind(10) as writer:
        for i in range(50):
            writer.submit(lambda i=i: done.append(i), i % 13, never)
    assert done == list(range(50))


@pytest.mark.parametrize("jobs", [1, 50])
def test_error_of_writer_is_raised(jobs: int) -> None:
    def fail() -> None:
        raise CheckpointError("full")

    with pytest.raises(CheckpointError, match="full"), write_behind(3) as writer:
        for _ in range(jobs):
            writer.submit(fail, 2, never)


def test_waiting_jobs_are_dropped_after_an_error() -> None:
    begun, release, done = threading.Event(), threading.Event(), list[int]()

    def first() -> None:
        begun.set()
        release.wait(30)

    with pytest.raises(ValueError, match="caller"), write_behind(100) as writer:
        writer.submit(first, 1, never)
        writer.submit(lambda: done.append(1), 1, never)
        begun.wait(30)
        threading.Timer(0.2, release.set).start()
        raise ValueError("caller")
    assert not done


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file({f"blocks.{i}.a.weight": torch.randn(64, 64).bfloat16() for i in range(40)}, path)
    return path


@pytest.mark.parametrize("failing", ["write", "read", "cancel", "interrupt"])
def test_failed_run_leaves_nothing_behind(failing: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if failing == "write":
        writes = iter(range(100))
        write = CheckpointWriter.write

        def write_or_fail(self: CheckpointWriter, name: str, tensor: torch.Tensor) -> None:
            if next(writes) == 11:
                raise CheckpointError("the disk is full")
            write(self, name, tensor)

        monkeypatch.setattr(CheckpointWriter, "write", write_or_fail)

    def watch(progress: Progress) -> None:
        if progress.done == 5 and failing == "read":
            source.write_bytes(b"changed")
        if progress.done == 5 and failing == "interrupt":
            raise KeyboardInterrupt

    cancelled = iter(range(10**6))
    errors = {"write": CheckpointError, "read": CheckpointError, "cancel": Cancelled, "interrupt": KeyboardInterrupt}
    with pytest.raises(errors[failing]):
        quantize_file(
            source,
            source.with_name("target.safetensors"),
            Recipe(format="int8_row", profile="generic"),
            force=True,
            progress=watch,
            cancel=lambda: failing == "cancel" and next(cancelled) > 20,
        )
    assert [path.name for path in source.parent.iterdir()] == [source.name]
