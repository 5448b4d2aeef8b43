"""Runs that go on where an interrupted one has stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import Cancelled, Recipe, SvdSettings, quantize_file
from calibrated_rounding.quant import execution as carrying_out
from calibrated_rounding.quant.cli import main
from calibrated_rounding.quant.finished import FinishedLayers, identify_layer
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.layer.task import LayerTask
from calibrated_rounding.quant.planning.builder import make_plan
from safetensors.torch import save_file

SLOW = Recipe(format="int8_row", rounding="svd", svd=SvdSettings(iterations=2), profile="generic")
LAYERS = 6


@pytest.fixture
def source(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({f"l{i}.weight": torch.randn(64, 64, generator=generator) for i in range(LAYERS)}, path)
    return path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that are computed from here on."""
    names: list[str] = []
    quantize_layer = carrying_out.quantize_layer

    def note(task: LayerTask) -> object:
        names.append(task.name)
        return quantize_layer(task)

    monkeypatch.setattr(carrying_out, "quantize_layer", note)
    return names


def run(source: Path, target: Path, recipe: Recipe = SLOW, cancel: Callable[[], bool] | None = None) -> None:
    quantize_file(source, target, recipe, force=True, resume=target.parent / "layers", cancel=cancel)


def interrupt(source: Path, target: Path, computed: list[str], after: int = 3) -> None:
    with pytest.raises(Cancelled):
        run(source, target, cancel=lambda: len(computed) > after)
    assert not target.exists()


def test_the_next_run_computes_only_the_rest(source: Path, tmp_path: Path, computed: list[str]) -> None:
    interrupt(source, tmp_path / "q.safetensors", computed)
    done = computed[:3]
    computed.clear()
    run(source, tmp_path / "q.safetensors")
    assert set(computed) == {f"l{i}" for i in range(LAYERS)} - set(done)
    quantize_file(source, tmp_path / "whole.safetensors", SLOW, force=True)
    assert (tmp_path / "q.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not (tmp_path / "layers").exists()


@pytest.mark.parametrize("change", ["recipe", "weights", "damage"])
def test_nothing_is_taken_from_another_run(source: Path, tmp_path: Path, computed: list[str], change: str) -> None:
    interrupt(source, tmp_path / "q.safetensors", computed)
    computed.clear()
    recipe = replace(SLOW, seed=7) if change == "recipe" else SLOW
    if change == "weights":
        save_file({f"l{i}.weight": torch.randn(64, 64) for i in range(LAYERS)}, source)
    if change == "damage":
        for path in (tmp_path / "layers").iterdir():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
    run(source, tmp_path / "q.safetensors", recipe)
    assert len(computed) == LAYERS


def test_nearest_rounding_keeps_nothing(source: Path, tmp_path: Path) -> None:
    def stop() -> bool:
        return any(tmp_path.glob("layers/*"))

    run(source, tmp_path / "q.safetensors", replace(SLOW, rounding="nearest"), cancel=stop)
    assert (tmp_path / "q.safetensors").exists()


def test_the_oldest_layers_go_first(source: Path, tmp_path: Path, computed: list[str]) -> None:
    interrupt(source, tmp_path / "q.safetensors", computed)
    files = list((tmp_path / "layers").iterdir())
    store = FinishedLayers(tmp_path / "layers", limit=max(path.stat().st_size for path in files))
    weight = torch.randn(64, 64)
    layer = next(iter(make_plan({"l9.weight": weight}, SLOW).layers.values()))
    key = identify_layer(
        layer, LayerTask(name="l9", weight=weight, format=FORMATS["int8_row"], group=None, recipe=SLOW), None
    )
    kept = FinishedLayers(tmp_path / "layers").find(files[0].stem)
    assert kept is not None
    store.keep(key, kept)
    assert [path.stem for path in (tmp_path / "layers").iterdir()] == [key]


def test_the_command_line_goes_on(source: Path, tmp_path: Path, computed: list[str]) -> None:
    target = tmp_path / "q.safetensors"
    with pytest.raises(Cancelled):
        quantize_file(
            source,
            target,
            SLOW,
            force=True,
            resume=tmp_path / ".q.safetensors.layers",
            cancel=lambda: len(computed) > 3,
        )
    computed.clear()
    (tmp_path / "recipe.json").write_text(json.dumps(SLOW.to_dict()))
    command = ["-i", str(source), "-o", str(target), "--recipe", str(tmp_path / "recipe.json")]
    assert main([*command, "--force", "--resume", "--quiet"]) == 0
    assert len(computed) < LAYERS and not (tmp_path / ".q.safetensors.layers").exists()
