"""Programs of test_nodes_run.py: the quantization of a small model's weights, as a node runs it."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch
from calibrated_rounding.nodes.host import running
from calibrated_rounding.nodes.host.weights import LoadedWeights
from calibrated_rounding.nodes.page import live
from calibrated_rounding.nodes.pipeline import quantize as pipeline
from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.errors import CheckpointError
from calibrated_rounding.quant.layer import methods

RECIPE = Recipe(format="int8_row", profile="generic", rounding="svd")


class Job:
    """The same three random layers, quantized for node 7 as often as asked."""

    def __init__(self) -> None:
        tensors = {f"layers.{i}.weight": torch.randn(64 * (i + 1), 64) for i in range(3)}
        self._weights = LoadedWeights(tensors)

    def run(self) -> Any:
        return pipeline.quantize_weights(self._weights, "", RECIPE, "cpu", "7")


def interrupt_layer() -> dict[str, Any]:
    """Interrupt a run inside a layer that checks for nothing until it is done, as one large decomposition does."""
    job, round_svd = Job(), methods.round_svd
    inside_layer, release = threading.Event(), threading.Event()

    def round_slowly(*args: Any, **kwargs: Any) -> Any:
        inside_layer.set()
        release.wait()
        return round_svd(*args, **kwargs)

    def interrupt() -> None:
        inside_layer.wait()
        management.interrupt_current_processing()

    methods.round_svd = round_slowly
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        job.run()
        ended_by = "nothing"
    except BaseException as error:
        ended_by = type(error).__name__
    still_in_layer = not release.is_set()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "calibrated-rounding":
            thread.join()
    files = os.listdir(pipeline.cache().folder)
    methods.round_svd = round_svd
    layers = len(job.run().report.layers)
    return {"ended_by": ended_by, "still_in_layer": still_in_layer, "files": files, "layers_afterwards": layers}


def watch_progress() -> dict[str, Any]:
    """Run for a page that listens, and fail for another node."""
    events, progress = list[Any](), list[Any]()
    job = [0, "a prompt", {}, {"extra_pnginfo": {"workflow": {"id": "a workflow"}}}, []]
    server = SimpleNamespace(
        client_id="a page",
        prompt_queue=SimpleNamespace(get_current_queue_volatile=lambda: ([job], [])),
        send_sync=lambda kind, data, page: events.append((kind, data, page)),
    )
    sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id: progress.append((value, total, node_id))
    )
    report = Job().run().report
    result = {
        "events": list(events),
        "progress": list(progress),
        "remembered": live.list_latest(),
        "errors": [layer.errors.weight.error for layer in report.layers],
    }

    def fail(progress: Any, cancel: Any) -> None:
        raise ValueError("no such luck")

    try:
        running.run_engine(fail, "8", live.begin("8"))
    except ValueError:
        result["failed"] = live.list_latest()[-1]
    return result


def fill_disk() -> dict[str, Any]:
    """Run twice with no room on the disk for the cache."""

    class FullDisk:
        def __init__(self, path: Any, *_: Any) -> None:
            raise CheckpointError(f"{path} cannot be written: the disk is full.")

    job, pipeline.FileSink = Job(), FullDisk
    first, second = job.run(), job.run()
    return {
        "layers": len(first.report.layers),
        "tensors": sorted(first.tensors),
        "notes": [note.to_dict() for note in first.report.notes],
        "from_disk": second.from_disk,
    }


def damage_cache() -> dict[str, Any]:
    """Cut the cached result short between the first and the second of three runs."""
    job = Job()
    job.run()
    (path,) = pipeline.cache().folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    return {"from_disk": [job.run().from_disk, job.run().from_disk]}
