"""The progress of a quantize node as the page shows it: sent while it runs, and kept for a page that opens later.

The prompt's thread writes a `NodeProgress`; the server's thread reads it. Nothing is sent where no server runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ...quant import LayerReport, Progress
from ..host.server import Graph, current_graph, current_prompt, running_server
from .columns import columns

EVENT = "calibrated_rounding.progress"
REMEMBERED = 32
"""Nodes whose latest run is kept."""

BAD_ENDS = ("interrupted", "failed")

_latest: dict[str, NodeProgress] = {}
"""Node id -> its latest run."""
_numbers = itertools.count(1)


class NodeProgress:
    """One run of the engine in one node; an observer as `run_engine` takes it."""

    def __init__(self, node: str) -> None:
        prompt, workflow = current_prompt()
        self.place = {"node": node, "prompt": prompt, "workflow": workflow, "run": next(_numbers)}
        self.graph = select_upstream(current_graph(), node)
        """The settings of the run."""
        self.state = "preparing"
        """preparing, running, rounded, interrupted or failed."""
        self.message = ""
        """Why the run failed."""
        self.progress: Progress | None = None
        self.layers: list[LayerReport] = []
        self._started = self._stage_started = time.monotonic()
        self._seconds: float | None = None

    def show(self, seen: Iterable[Progress]) -> None:
        """Send what the engine has reported since the last call."""
        start = len(self.layers)
        for now in seen:
            if self.progress is None or now.stage != self.progress.stage:
                self._stage_started = time.monotonic()
            self.progress = now
            if now.last is not None and now.done > len(self.layers):
                self.layers.append(now.last)
        self.state = "running"
        self._send(start)

    def end(self, state: str, message: str = "") -> None:
        """Send that the engine has ended. ``message`` says why, if it failed."""
        self.state, self.message, self._seconds = state, message, time.monotonic() - self._started
        self._send(len(self.layers))

    def since(self, start: int) -> dict[str, Any]:
        """The whole state as JSON, with the finished layers from number ``start`` on; from 0 on also with the graph."""
        now = self.progress or Progress()
        return (
            self.place
            | ({} if start else {"graph": self.graph})
            | {
                "state": self.state,
                "message": self.message,
                "seconds": time.monotonic() - self._started if self._seconds is None else self._seconds,
                "stage": now.stage,
                "stage_seconds": time.monotonic() - self._stage_started,
                "done": now.done,
                "total": now.total,
                "weights_done": now.weights_done,
                "weights_total": now.weights_total,
                "next": now.next_layer,
                "start": start,
                "layers": columns([_row(layer) for layer in self.layers[start:]]),
            }
        )

    def _send(self, start: int) -> None:
        server = running_server()
        if server is not None:
            server.send_sync(EVENT, self.since(start), server.client_id)


def begin(node: str | None) -> NodeProgress:
    """Start the progress of a run, which replaces the node's last one."""
    progress = NodeProgress(str(node))
    if node is not None:
        _latest.pop(str(node), None)
        _latest[str(node)] = progress
        for old in list(_latest)[:-REMEMBERED]:
            del _latest[old]
        progress._send(0)
    return progress


def select_upstream(graph: Graph, node: str) -> dict[str, dict[str, Any]]:
    """The part of a graph that decides what a node does: the node and the nodes before it, calibrations aside."""
    selected: dict[str, dict[str, Any]] = {}
    waiting = [node]
    while waiting:
        name = waiting.pop()
        if name in selected or name not in graph:
            continue
        inputs = graph[name]["inputs"]
        selected[name] = {"class_type": graph[name]["class_type"], "inputs": inputs}
        waiting += [str(value[0]) for key, value in inputs.items() if isinstance(value, list) and key != "calibration"]
    return selected


def list_latest() -> list[dict[str, Any]]:
    """The latest run of each node that the history does not tell: runs of the present prompt, and bad ends."""
    prompt, _ = current_prompt()
    return [p.since(0) for p in list(_latest.values()) if p.state in BAD_ENDS or p.place["prompt"] == prompt]


def _row(layer: LayerReport) -> dict[str, Any]:
    """The columns of a layer that the page shows during the run."""
    row = {key: getattr(layer, key) for key in ("name", "format", "bytes_before", "bytes_after")}
    return row | {"errors": asdict(layer.errors)}
