from __future__ import annotations

import pytest
import torch
from calibrated_rounding.kernels import timing, tuning
from calibrated_rounding.kernels.tiles import Device, Problem, Tile

H200, ADA = Device("sm90", 132, 232_448, True), Device("sm89", 128, 101_376, False)


@pytest.mark.parametrize("device", [H200, ADA])
@pytest.mark.parametrize("block", [None, 64, 128])
def test_candidates_can_run_and_are_not_too_many(device: Device, block: int | None) -> None:
    for problem in tuning.problems([(3072, 3072)], [1, 77, 512, 4608]):
        if problem.block != block:
            continue
        tiles = tuning.candidates(problem, device)
        assert 4 <= len(tiles) == len(set(tiles)) <= 64
        for tile in tiles:
            assert tile.fits(block)
            assert tile.stages * (tile.rows + tile.columns) * tile.depth <= device.shared
            assert tile.rows <= max(16, problem.m)


def test_a_bucket_is_measured_once_at_its_largest() -> None:
    rows = [problem.m for problem in tuning.problems([(64, 64)], [1, 9, 77, 4608, 5000]) if problem.block is None]
    assert rows == [16, 128, 8192]
    assert all(problem.bucket == problem.m for problem in tuning.problems([(64, 64)], range(1, 300, 7)))


def test_large_problems_have_the_large_tiles_among_their_candidates() -> None:
    tiles = tuning.candidates(Problem(8192, 3072, 3072, None), H200)
    assert Tile(128, 256, 128, 8, 4) in tiles


def test_without_a_gpu_nothing_is_tuned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tuning.main([]) == 1
    assert capsys.readouterr().err == "Nothing was tuned: no CUDA device.\n"


def test_a_race_calls_everyone_in_turn() -> None:
    called: list[str] = []
    times = timing.race({name: lambda name=name: called.append(name) for name in "ab"}, 3, torch.device("cpu"))
    assert called == [*"aabb", *"ab" * 3]
    assert set(times) == {"a", "b"} and all(time >= 0 for time in times.values())
