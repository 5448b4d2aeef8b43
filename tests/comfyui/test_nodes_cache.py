"""The cache of quantized models, without ComfyUI."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from calibrated_rounding.nodes.pipeline.cache import Cache
from calibrated_rounding.quant import Recipe, Report, quantize_state_dict
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def report() -> Report:
    return quantize_state_dict({"layer.weight": torch.ones(32, 32)}, Recipe(profile="generic"))[1]


def add(cache: Cache, source: str, report: Report, used: int, size: int = 1000) -> Path:
    """Add an entry of about ``size`` bytes, last used at the time ``used``."""
    path = cache.path(source, Recipe(), "cpu")
    save_file({"layer.weight": torch.zeros(size, dtype=torch.uint8)}, path)
    cache.complete(path, report)
    os.utime(path, (used, used))
    return path


def test_entry_is_found_with_report(tmp_path: Path, report: Report) -> None:
    cache = Cache(tmp_path)
    path = add(cache, "source", report, used=1)
    entry = cache.find(path)
    assert entry is not None
    assert (entry.path, entry.report) == (path, report)


def test_source_recipe_and_device_distinguish_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls = [("a", Recipe(), "cpu"), ("b", Recipe(), "cpu"), ("a", Recipe(seed=1), "cpu"), ("a", Recipe(), "cuda:0")]
    assert len({cache.path(*call) for call in calls}) == len(calls)
    assert cache.path(*calls[0]) == cache.path("a", Recipe(), "cpu")


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_entry_is_not_found(tmp_path: Path, report: Report, suffix: str, damage: str) -> None:
    cache = Cache(tmp_path)
    path = add(cache, "source", report, used=1)
    file = path.with_suffix(suffix)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20])
    assert cache.find(path) is None


def test_entry_of_older_version_is_dropped(tmp_path: Path, report: Report) -> None:
    """Older versions wrote a layer's errors side by side."""
    cache = Cache(tmp_path)
    path = add(cache, "source", report, used=1)
    stored = json.loads(path.with_suffix(".json").read_text())
    for layer in stored["report"]["layers"]:
        layer |= {"error": layer.pop("errors")["weight"]["error"], "notes": ["a sentence"]}
    path.with_suffix(".json").write_text(json.dumps(stored))
    assert cache.find(path) is None
    assert not path.exists()


def test_least_recently_used_entries_are_removed(tmp_path: Path, report: Report) -> None:
    cache = Cache(tmp_path, limit=3500)
    first, second, third = (add(cache, name, report, used) for name, used in (("a", 10), ("b", 20), ("c", 30)))
    assert cache.find(first) is not None  # used now
    newest = add(cache, "d", report, used=40)
    assert [path.exists() for path in (first, second, third, newest)] == [True, False, True, True]
    assert not second.with_suffix(".json").exists()


def test_newest_entry_stays_even_if_too_large(tmp_path: Path, report: Report) -> None:
    cache = Cache(tmp_path, limit=1500)
    small, large = add(cache, "a", report, used=10), add(cache, "b", report, used=20, size=5000)
    assert (small.exists(), large.exists()) == (False, True)
