from __future__ import annotations

import json
from pathlib import Path

import pytest
from calibrated_rounding.kernels import tables
from calibrated_rounding.kernels.tables import Choice, choose, read, write
from calibrated_rounding.kernels.tiles import Device, Problem, Tile, default_tile

H200 = Device("sm90", 132, 232_448, True)
HEAD = {"arch": "sm90", "device": "a test", "triton": "0"}
NARROW, WIDE, THIRD = Tile(64, 64, 128, 4, 3), Tile(128, 256, 128, 8, 3), Tile(128, 128, 128, 8, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv(tables.FOLDER_VARIABLE, str(tmp_path / "user"))
    monkeypatch.setattr(tables, "PACKAGED", tmp_path / "packaged")
    tables.forget()
    yield tmp_path
    tables.forget()


def test_without_a_table_the_default_tile_runs_on_the_named_backend() -> None:
    problem = Problem(4608, 3072, 3072, None)
    assert choose("auto", problem, H200) == Choice("triton", default_tile(problem, H200))
    assert choose("triton_v2", problem, H200) == Choice("triton_v2", default_tile(problem, H200))


def test_auto_takes_the_fastest_and_a_named_backend_its_own() -> None:
    key = ("row/3072x3072", 8192)
    write(tables.user_table("sm90"), {key: (Choice("triton", NARROW, 0.3), Choice("triton_v2", WIDE, 0.2))}, HEAD)
    for m in (4097, 4608, 8192):
        problem = Problem(m, 3072, 3072, None)
        assert choose("auto", problem, H200) == Choice("triton_v2", WIDE, 0.2)
        assert choose("triton", problem, H200) == Choice("triton", NARROW, 0.3)
    assert choose("auto", Problem(4608, 3072, 3072, 128), H200).ms is None
    assert choose("auto", Problem(4608, 3072, 3072, None), Device("sm80", 108, 166_912, False)).ms is None


def test_the_nearest_bucket_stands_for_one_that_was_not_measured() -> None:
    table = {
        ("row/64x64", 16): (Choice("triton", NARROW, 0.1),),
        ("row/64x64", 8192): (Choice("triton_v2", WIDE, 0.1),),
    }
    write(tables.user_table("sm90"), table, HEAD)
    assert choose("auto", Problem(1, 64, 64, None), H200).tile == NARROW
    assert choose("auto", Problem(100, 64, 64, None), H200).tile == NARROW
    assert choose("auto", Problem(90_000, 64, 64, None), H200).tile == WIDE


def test_the_users_table_wins_over_the_packaged() -> None:
    key, other = ("row/64x64", 16), ("row/64x96", 16)
    write(
        tables.PACKAGED / "sm90.json",
        {key: (Choice("triton", WIDE, 1.0),), other: (Choice("triton", THIRD, 1.0),)},
        HEAD,
    )
    write(tables.user_table("sm90"), {key: (Choice("triton", NARROW, 2.0),)}, HEAD)
    assert choose("auto", Problem(1, 64, 64, None), H200).tile == NARROW
    assert choose("auto", Problem(1, 64, 96, None), H200).tile == THIRD
    assert choose("auto", Problem(1, 96, 64, None), H200).ms is None
    assert set(tables.known_choices("sm90", tables.user_table("sm90").parent)) == {key, other}


def test_a_tile_that_cannot_run_with_block_scales_is_not_taken() -> None:
    problem = Problem(64, 256, 256, 128)
    write(tables.user_table("sm90"), {(problem.family, 64): (Choice("triton", Tile(64, 64, 64, 4, 3), 0.1),)}, HEAD)
    assert choose("auto", problem, H200) == Choice("triton", default_tile(problem, H200))


def test_a_table_is_bounded_and_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGEST", 3)
    path = tables.user_table("sm90")
    write(path, {(f"row/{n}x16", 16): (Choice("triton", NARROW, 1.0),) for n in range(5)}, HEAD)
    assert [family for family, _ in read(path)] == ["row/2x16", "row/3x16", "row/4x16"]


def test_what_is_written_is_read_and_leaves_nothing_else(folder: Path) -> None:
    path = tables.user_table("sm90")
    table = {("block128/64x128", 32): (Choice("triton_v2", THIRD, 0.125),)}
    write(path, table, HEAD)
    write(path, table, HEAD)
    assert read(path) == table
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["device"] == "a test"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"version": 2, "entries": {}}', '{"version": 1, "entries": {"row/1x1": {"16": {"cuda": {}}}}}'],
)
def test_a_table_that_cannot_be_read_is_left_out_and_named(text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tables.user_table("sm90")
    path.parent.mkdir()
    path.write_text(text)
    assert read(path) == {}
    assert str(path) in caplog.text


@pytest.mark.parametrize("block", [None, 64, 128])
@pytest.mark.parametrize("shared", [65_536, 101_376, 166_912, 232_448])
def test_default_tiles_can_run(block: int | None, shared: int) -> None:
    for m in (1, 16, 17, 77, 512, 4608, 32_760):
        for n in (64, 3072, 55_296):
            tile = default_tile(Problem(m, n, 3072, block), Device("any", 132, shared, False))
            assert tile.fits(block)
            assert tile.stages * (tile.rows + tile.columns) * tile.depth <= shared


def test_default_tiles_keep_all_processors_busy_where_they_can() -> None:
    assert default_tile(Problem(4608, 3072, 3072, None), H200).rows == 128
    for n in (3072, 5120, 12_288):
        tile = default_tile(Problem(512, n, 3072, None), H200)
        assert tile.count(512, n) >= 132
