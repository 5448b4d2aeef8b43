"""The engine in a node: progress for the page, an interrupt inside a layer, a full disk and a damaged cache."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host
from calibrated_rounding.tools.comfyui.workflows import table

LAYERS = [f"layers.{i}" for i in range(3)]


@pytest.fixture(scope="module")
def interrupted(host: Host) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.run_quantization:interrupt_layer")


def test_interrupt_does_not_wait_for_layer(interrupted: dict[str, Any]) -> None:
    """It would never end if only the engine's own steps checked for interrupts."""
    assert interrupted["ended_by"] == "InterruptProcessingException"
    assert interrupted["still_in_layer"]


def test_interrupted_run_leaves_no_file(interrupted: dict[str, Any]) -> None:
    assert interrupted["files"] == []


def test_next_run_succeeds(interrupted: dict[str, Any]) -> None:
    assert interrupted["layers_afterwards"] == 3


@pytest.fixture(scope="module")
def progress(host: Host) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.run_quantization:watch_progress")


def test_progress_bar_counts_weights(progress: dict[str, Any]) -> None:
    weights = 64 * 64 * (1 + 2 + 3)
    assert progress["progress"][-1] == [weights, weights, "7"]


def test_page_receives_every_layer_once(progress: dict[str, Any]) -> None:
    kinds, events, pages = zip(*progress["events"], strict=True)
    assert set(kinds) == {"calibrated_rounding.progress"} and set(pages) == {"a page"}
    assert {(event["node"], event["prompt"], event["workflow"]) for event in events} == {
        ("7", "a prompt", "a workflow")
    }
    assert [events[0]["state"], events[-1]["state"]] == ["preparing", "rounded"]
    rows = [row for event in events for row in table(event["layers"])]
    assert [row["name"] for row in rows] == LAYERS
    assert [row["errors"]["weight"]["error"] for row in rows] == pytest.approx(progress["errors"], rel=1e-5)
    for event in events:
        assert event["start"] + len(table(event["layers"])) == event["done"] <= event["total"]


def test_late_page_receives_whole_run(progress: dict[str, Any]) -> None:
    (run,) = progress["remembered"]
    assert [row["name"] for row in table(run["layers"])] == LAYERS
    assert (run["state"], run["done"], run["start"]) == ("rounded", 3, 0)


def test_page_receives_failure_message(progress: dict[str, Any]) -> None:
    assert (progress["failed"]["state"], progress["failed"]["message"]) == ("failed", "no such luck")


def test_full_disk_disables_cache_only(host: Host) -> None:
    result = host.call("tests.comfyui.programs.run_quantization:fill_disk")
    assert result["layers"] == 3
    assert "layers.0.weight_scale" in result["tensors"]
    (note,) = result["notes"]
    assert note["kind"] == "not_kept_on_disk" and "the disk is full" in note["values"]["reason"]
    assert result["from_disk"] is False


def test_damaged_cache_entry_is_replaced(host: Host) -> None:
    assert host.call("tests.comfyui.programs.run_quantization:damage_cache")["from_disk"] == [False, True]
