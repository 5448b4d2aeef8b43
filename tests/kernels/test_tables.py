from __future__ import annotations

import json
from pathlib import Path

import pytest
from calibrated_rounding.kernels import tables
from calibrated_rounding.kernels.shapes import list_unique_shapes
from calibrated_rounding.kernels.tables import KernelConfig, choose_config, read_table, write_table
from calibrated_rounding.kernels.tiles import DeviceInfo, GemmShape, Tile, choose_default_tile
from hypothesis import given
from hypothesis import strategies as st

H200 = DeviceInfo(arch="sm90", processors=132, shared=232_448, descriptors=True)
A100 = DeviceInfo(arch="sm80", processors=108, shared=166_912, descriptors=False)
HEAD = {"arch": "sm90", "device": "a test", "triton": "0"}
NARROW, WIDE, THIRD = (
    Tile(rows=64, columns=64, depth=128, warps=4, stages=3),
    Tile(rows=128, columns=256, depth=128, warps=8, stages=3),
    Tile(rows=128, columns=128, depth=128, warps=8, stages=3),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv(tables.FOLDER_VARIABLE, str(tmp_path / "user"))
    monkeypatch.setattr(tables, "PACKAGED", tmp_path / "packaged")
    tables.clear_caches()
    yield tmp_path
    tables.clear_caches()


def test_default_tile_without_a_table() -> None:
    shape = GemmShape(m=4608, n=3072, k=3072, block=None)
    assert choose_config("auto", shape, H200) == KernelConfig("triton", choose_default_tile(shape, H200))
    assert choose_config("triton_v2", shape, H200) == KernelConfig("triton_v2", choose_default_tile(shape, H200))


def test_auto_takes_fastest_backend() -> None:
    key = ("row/3072x3072", 8192)
    write_table(
        tables.user_table_path("sm90"),
        {key: (KernelConfig("triton", NARROW, 0.3), KernelConfig("triton_v2", WIDE, 0.2))},
        HEAD,
    )
    for m in (4097, 4608, 8192):
        shape = GemmShape(m=m, n=3072, k=3072, block=None)
        assert choose_config("auto", shape, H200) == KernelConfig("triton_v2", WIDE, 0.2)
        assert choose_config("triton", shape, H200) == KernelConfig("triton", NARROW, 0.3)
    assert choose_config("auto", GemmShape(m=4608, n=3072, k=3072, block=128), H200).ms is None
    assert choose_config("auto", GemmShape(m=4608, n=3072, k=3072, block=None), A100).ms is None


def test_nearest_bucket_replaces_a_missing_one() -> None:
    table = {
        ("row/64x64", 16): (KernelConfig("triton", NARROW, 0.1),),
        ("row/64x64", 8192): (KernelConfig("triton_v2", WIDE, 0.1),),
    }
    write_table(tables.user_table_path("sm90"), table, HEAD)
    assert choose_config("auto", GemmShape(m=1, n=64, k=64, block=None), H200).tile == NARROW
    assert choose_config("auto", GemmShape(m=100, n=64, k=64, block=None), H200).tile == NARROW
    assert choose_config("auto", GemmShape(m=90_000, n=64, k=64, block=None), H200).tile == WIDE


def test_user_table_wins_over_packaged() -> None:
    key, other = ("row/64x64", 16), ("row/64x96", 16)
    write_table(
        tables.PACKAGED / "sm90.json",
        {key: (KernelConfig("triton", WIDE, 1.0),), other: (KernelConfig("triton", THIRD, 1.0),)},
        HEAD,
    )
    write_table(tables.user_table_path("sm90"), {key: (KernelConfig("triton", NARROW, 2.0),)}, HEAD)
    assert choose_config("auto", GemmShape(m=1, n=64, k=64, block=None), H200).tile == NARROW
    assert choose_config("auto", GemmShape(m=1, n=64, k=96, block=None), H200).tile == THIRD
    assert choose_config("auto", GemmShape(m=1, n=96, k=64, block=None), H200).ms is None
    assert set(tables.load_configs("sm90", tables.user_table_path("sm90").parent)) == {key, other}


def test_tile_that_does_not_fit_is_ignored() -> None:
    shape = GemmShape(m=64, n=256, k=256, block=128)
    write_table(
        tables.user_table_path("sm90"),
        {(shape.family, 64): (KernelConfig("triton", Tile(rows=64, columns=64, depth=64, warps=4, stages=3), 0.1),)},
        HEAD,
    )
    assert choose_config("auto", shape, H200) == KernelConfig("triton", choose_default_tile(shape, H200))


def test_table_keeps_only_newest_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ENTRIES", 3)
    path = tables.user_table_path("sm90")
    write_table(path, {(f"row/{n}x16", 16): (KernelConfig("triton", NARROW, 1.0),) for n in range(5)}, HEAD)
    assert [family for family, _ in read_table(path)] == ["row/2x16", "row/3x16", "row/4x16"]


def test_write_read_roundtrip_leaves_one_file(folder: Path) -> None:
    path = tables.user_table_path("sm90")
    table = {("block128/64x128", 32): (KernelConfig("triton_v2", THIRD, 0.125),)}
    write_table(path, table, HEAD)
    write_table(path, table, HEAD)
    assert read_table(path) == table
    assert list(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["device"] == "a test"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"version": 2, "entries": {}}', '{"version": 1, "entries": {"row/1x1": {"16": {"cuda": {}}}}}'],
)
def test_unreadable_table_is_empty_and_logged(text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tables.user_table_path("sm90")
    path.parent.mkdir()
    path.write_text(text)
    assert read_table(path) == {}
    assert str(path) in caplog.text


DEVICES = [
    H200,
    A100,
    DeviceInfo(arch="sm89", processors=128, shared=101_376, descriptors=False),
    DeviceInfo(arch="sm100", processors=148, shared=232_448, descriptors=True),
    DeviceInfo(arch="gfx942", processors=304, shared=65_536, descriptors=False),
]


@given(
    m=st.integers(1, 70_000),
    n=st.integers(1, 60_000),
    k=st.integers(1, 30_000),
    block=st.sampled_from([None, 64, 128]),
    device=st.sampled_from(DEVICES),
)
def test_default_tiles_fit(m: int, n: int, k: int, block: int | None, device: DeviceInfo) -> None:
    shape = GemmShape(m=m, n=n, k=k, block=block)
    for backend in ("triton", "triton_v2"):
        tile = choose_config(backend, shape, device).tile
        assert tile == choose_default_tile(shape, device)
        assert tile.fits(block)
        assert tile.stages * (tile.rows + tile.columns) * tile.depth <= device.shared


def share_in_use(shape: GemmShape, device: DeviceInfo) -> float:
    """Tiles, over the tiles that all processors could compute in the same number of waves."""
    count = choose_default_tile(shape, device).count(shape.m, shape.n)
    return count / (-(-count // device.processors) * device.processors)


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("device", DEVICES[:3])
def test_default_tiles_keep_processors_busy(block: int | None, device: DeviceInfo) -> None:
    for m, least, mean in ((512, 0.6, 0.8), (4608, 0.8, 0.92), (32_760, 0.95, 0.97)):
        shares = [share_in_use(GemmShape(m=m, n=n, k=k, block=block), device) for n, k in list_unique_shapes()]
        assert min(shares) >= least and sum(shares) / len(shares) >= mean


def test_chosen_tile_has_cheapest_waves() -> None:
    """One of the waves of 128 x 256 would hold one tile of the 133."""
    shape = GemmShape(m=128 * 19, n=256 * 7, k=3072, block=None)
    assert choose_default_tile(shape, H200).columns < 256
    assert choose_default_tile(GemmShape(m=128 * 18, n=256 * 7, k=3072, block=None), H200).columns == 256
