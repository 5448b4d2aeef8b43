from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import timing, tuning
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
