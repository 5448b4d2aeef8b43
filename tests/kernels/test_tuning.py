from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibrated_rounding.kernels import memory, timing, tuning
from calibrated_rounding.kernels.shapes import ROWS, list_unique_shapes
from calibrated_rounding.kernels.tiles import DeviceInfo, GemmShape, Tile

H200 = DeviceInfo(arch="sm90", processors=132, shared=232_448, descriptors=True)
ADA = DeviceInfo(arch="sm89", processors=128, shared=101_376, descriptors=False)


@pytest.mark.parametrize("device", [H200, ADA])
@pytest.mark.parametrize("block", [None, 64, 128])
def test_candidates_fit_and_are_few(device: DeviceInfo, block: int | None) -> None:
    for shape in tuning.list_gemm_shapes([(3072, 3072)], [1, 77, 512, 4608]):
        if shape.block != block:
            continue
        tiles = tuning.list_candidates(shape, device)
        assert 4 <= len(tiles) == len(set(tiles)) <= 64
        for tile in tiles:
            assert tile.fits(block)
            assert tile.stages * (tile.rows + tile.columns) * tile.depth <= device.shared
            assert tile.rows <= max(16, shape.m)


def test_each_bucket_is_measured_once() -> None:
    rows = [shape.m for shape in tuning.list_gemm_shapes([(64, 64)], [1, 9, 77, 4608, 5000]) if shape.block is None]
    assert rows == [16, 128, 8192]
    assert all(shape.bucket == shape.m for shape in tuning.list_gemm_shapes([(64, 64)], range(1, 300, 7)))


def test_large_shapes_try_large_tiles() -> None:
    tiles = tuning.list_candidates(GemmShape(m=8192, n=3072, k=3072, block=None), H200)
    assert Tile(rows=128, columns=256, depth=128, warps=8, stages=4) in tiles


def test_nothing_is_tuned_without_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tuning.main([]) == 1
    assert capsys.readouterr().err == "Nothing was tuned: no CUDA device.\n"


def test_race_calls_all_in_turn() -> None:
    called: list[str] = []
    times = timing.race({name: lambda name=name: called.append(name) for name in "ab"}, 3, torch.device("cpu"))
    assert called == [*"aabb", *"ab" * 3]
    assert set(times) == {"a", "b"} and all(time >= 0 for time in times.values())


def test_compared_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    out = torch.empty_like(reference)
    for part in (1, 8 * 64 * 7, 1 << 28):
        monkeypatch.setattr(tuning, "COMPARED_BYTES", part)
        assert tuning._agrees(lambda: out.copy_(reference), out, reference, "same")
        assert not tuning._agrees(lambda: out.copy_(reference)[-1].add_(1.0), out, reference, "other")
        assert not tuning._agrees(lambda: out.copy_(reference)[-1].fill_(torch.nan), out, reference, "NaN")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 16 GB without anything on it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


def test_products_without_room_are_skipped_by_name(
    card: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from calibrated_rounding.kernels.gpu import device

    tuned = []
    monkeypatch.setattr(device, "get_device_info", lambda _: H200)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a test")
    monkeypatch.setattr(tuning, "_tune_shape", lambda key, shape, info: tuned.append(key) or {})
    tuning.tune([(200_000, 6144), (3072, 3072)], [32_760], tmp_path / "table.json")
    assert [line for line in capsys.readouterr().out.splitlines() if "row/" in line] == [
        "row/200000x6144 M 32768: skipped, 32.3 GiB are not free"
    ]
    assert {family.split("/")[1] for family, _ in tuned} == {"3072x3072"}


def test_supported_models_are_tuned_on_16_gigabytes(card: None) -> None:
    device = torch.device("cuda")
    shapes = list(tuning.list_gemm_shapes(list_unique_shapes(), ROWS))
    assert all(memory.fits(tuning.peak_bytes(shape), device) for shape in shapes)
