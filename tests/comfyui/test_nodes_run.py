"""How a node runs the engine: progress told to the page, an interrupt amid a layer, and no room on the disk."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tests.comfyui.harness import PACK, Host
from calibrated_rounding.tests.comfyui.workflows import table

SETUP = """
import os, sys, threading
from types import SimpleNamespace
import comfy.model_management as management, comfy.utils
inside.load_pack(root)
from calibrated_rounding.nodes import quantize
from calibrated_rounding.nodes.host.weights import LoadedWeights
from calibrated_rounding.quant import Recipe, methods

folder = quantize.cache().folder
weights = LoadedWeights({f"layers.{i}.weight": torch.randn(64 * (i + 1), 64) for i in range(3)})
recipe = Recipe(format="int8_row", profile="generic", rounding="svd")

def run():
    return quantize.quantize_weights(weights, "", recipe, "cpu", "7")
"""

INTERRUPT = (
    SETUP
    + """
real, inside_layer, release = methods.round_svd, threading.Event(), threading.Event()

def endless(*arguments, **options):
    # Like one decomposition of a huge matrix: it looks at nothing until it is done.
    inside_layer.set()
    release.wait()
    return real(*arguments, **options)

methods.round_svd = endless
waiting = lambda: (inside_layer.wait(), management.interrupt_current_processing())
threading.Thread(target=waiting, daemon=True).start()
try:
    run()
    outputs["ended"] = "finished"
except BaseException as error:
    outputs["ended"] = type(error).__name__
outputs["still in the layer"] = not release.is_set()
release.set()
for thread in threading.enumerate():
    if thread.name == "calibrated-rounding":
        thread.join()
outputs["left"] = os.listdir(folder)
methods.round_svd = real
outputs["afterwards"] = len(run().report.layers)
"""
)


@pytest.fixture(scope="module")
def interrupted(host: Host) -> dict[str, Any]:
    return host.run(INTERRUPT, root=str(PACK))


def test_an_interrupt_does_not_wait_for_the_layer(interrupted: dict[str, Any]) -> None:
    """Were it looked at only between the steps of the engine, this would never end."""
    assert interrupted["ended"] == "InterruptProcessingException"
    assert interrupted["still in the layer"]


def test_an_interrupted_run_leaves_no_file(interrupted: dict[str, Any]) -> None:
    assert interrupted["left"] == []


def test_the_next_run_works(interrupted: dict[str, Any]) -> None:
    assert interrupted["afterwards"] == 3


PROGRESS = (
    SETUP
    + """
events, bars = [], []
asked = [0, "a prompt", {}, {"extra_pnginfo": {"workflow": {"id": "a workflow"}}}, []]
server = SimpleNamespace(
    client_id="a page",
    prompt_queue=SimpleNamespace(get_current_queue_volatile=lambda: ([asked], [])),
    send_sync=lambda kind, data, page: events.append((kind, data, page)),
)
sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
comfy.utils.set_progress_bar_global_hook(lambda now, total, preview, node_id: bars.append((now, total, node_id)))
report = run().report
from calibrated_rounding.nodes.page import live
outputs["events"], outputs["bars"], outputs["remembered"] = list(events), bars, live.remembered()
outputs["errors"] = [layer.errors.weight.error for layer in report.layers]

def fail(progress, cancel):
    raise ValueError("no such luck")

from calibrated_rounding.nodes.host import running
try:
    running.run(fail, "8")
except ValueError:
    outputs["failed"] = live.remembered()[-1]
"""
)


@pytest.fixture(scope="module")
def progress(host: Host) -> dict[str, Any]:
    return host.run(PROGRESS, root=str(PACK))


def test_the_bar_goes_by_weights(progress: dict[str, Any]) -> None:
    weights = 64 * 64 * (1 + 2 + 3)
    assert progress["bars"][-1] == [weights, weights, "7"]


def test_every_layer_is_told_to_the_page_once(progress: dict[str, Any]) -> None:
    kinds, events, pages = zip(*progress["events"], strict=True)
    assert set(kinds) == {"calibrated_rounding.progress"} and set(pages) == {"a page"}
    assert {(event["node"], event["prompt"], event["workflow"]) for event in events} == {
        ("7", "a prompt", "a workflow")
    }
    assert [events[0]["state"], events[-1]["state"]] == ["preparing", "rounded"]
    rows = [row for event in events for row in table(event["layers"])]
    assert [row["name"] for row in rows] == [f"layers.{i}" for i in range(3)]
    assert [row["errors"]["weight"]["error"] for row in rows] == pytest.approx(progress["errors"], rel=1e-5)
    for event in events:
        assert event["start"] + len(table(event["layers"])) == event["done"] <= event["total"]


def test_a_page_that_comes_later_is_told_everything(progress: dict[str, Any]) -> None:
    (run,) = progress["remembered"]
    assert [row["name"] for row in table(run["layers"])] == [f"layers.{i}" for i in range(3)]
    assert (run["state"], run["done"], run["start"]) == ("rounded", 3, 0)


def test_a_page_is_told_why_a_run_failed(progress: dict[str, Any]) -> None:
    assert (progress["failed"]["state"], progress["failed"]["message"]) == ("failed", "no such luck")


NO_ROOM = (
    SETUP
    + """
from calibrated_rounding.quant.errors import CheckpointError

class Full:
    def __init__(self, path, *arguments):
        raise CheckpointError(f"{path} cannot be written: the disk is full.")

quantize.CheckpointWriter = Full
first, second = run(), run()
outputs["layers"] = len(first.report.layers)
outputs["tensors"] = sorted(first.tensors)
outputs["notes"] = [note.to_dict() for note in first.report.notes]
outputs["kept"] = second.kept
"""
)


def test_a_full_disk_costs_the_kept_result_and_nothing_else(host: Host) -> None:
    made = host.run(NO_ROOM, root=str(PACK))
    assert made["layers"] == 3
    assert "layers.0.weight_scale" in made["tensors"]
    (note,) = made["notes"]
    assert note["kind"] == "not_kept_on_disk" and "the disk is full" in note["values"]["reason"]
    assert made["kept"] is False


DAMAGED = (
    SETUP
    + """
first = run()
del first
(path,) = folder.glob("*.safetensors")
path.write_bytes(path.read_bytes()[:100])
second, third = run(), run()
outputs["kept"] = [second.kept, third.kept]
"""
)


def test_a_damaged_kept_result_is_made_anew(host: Host) -> None:
    assert host.run(DAMAGED, root=str(PACK))["kept"] == [False, True]
