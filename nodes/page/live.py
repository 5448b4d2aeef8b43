"""A node's run as the pack's front end shows it: sent while it goes on, and kept for a page that is opened meanwhile.

The prompt's thread tells a `Run` what happens; the server's thread reads it. Nothing is sent where no server runs.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ...quant import LayerReport, Progress
from .columns import columns

EVENT = "calibrated_rounding.progress"
REMEMBERED = 32
"""Runs that are kept, the latest of each node."""

BAD_ENDS = ("interrupted", "failed")

_runs: dict[str, Run] = {}
_numbers = itertools.count(1)


class Run:
    """One run of the engine in one node. state: preparing, running, rounded, interrupted or failed."""

    def __init__(self, node: str) -> None:
        prompt, workflow = _prompt()
        self.place = {"node": node, "prompt": prompt, "workflow": workflow, "run": next(_numbers)}
        self.state, self.message = "preparing", ""
        self.progress: Progress | None = None
        self.layers: list[LayerReport] = []
        self._started = time.monotonic()
        self._seconds: float | None = None

    def show(self, seen: Iterable[Progress]) -> None:
        """Tell the page what the engine has reported since the last call."""
        start = len(self.layers)
        for now in seen:
            self.progress = now
            if now.last is not None and now.done > len(self.layers):
                self.layers.append(now.last)
        self.state = "running"
        self._send(start)

    def end(self, state: str, message: str = "") -> None:
        """Tell the page that the engine has ended; ``message`` says why, where it failed."""
        self.state, self.message, self._seconds = state, message, time.monotonic() - self._started
        self._send(len(self.layers))

    def since(self, start: int) -> dict[str, Any]:
        """All there is to show, of the finished layers only those from ``start`` on."""
        now = self.progress or Progress()
        return self.place | {
            "state": self.state,
            "message": self.message,
            "seconds": time.monotonic() - self._started if self._seconds is None else self._seconds,
            "done": now.done,
            "total": now.total,
            "weights_done": now.weights_done,
            "weights_total": now.weights_total,
            "next": now.next_layer,
            "start": start,
            "layers": columns([_row(layer) for layer in self.layers[start:]]),
        }

    def _send(self, start: int) -> None:
        server = running_server()
        if server is not None:
            server.send_sync(EVENT, self.since(start), server.client_id)


def begin(node: str | None) -> Run:
    """A new run, which replaces the node's last one."""
    run = Run(str(node))
    if node is not None:
        _runs.pop(str(node), None)
        _runs[str(node)] = run
        for old in list(_runs)[:-REMEMBERED]:
            del _runs[old]
        run._send(0)
    return run


def remembered() -> list[dict[str, Any]]:
    """The latest run of each node, whole, where it tells more than the history: in the present prompt, or a bad end."""
    prompt, _ = _prompt()
    return [run.since(0) for run in list(_runs.values()) if run.state in BAD_ENDS or run.place["prompt"] == prompt]


def running_server() -> Any:
    """ComfyUI's server, None where none runs."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _row(layer: LayerReport) -> dict[str, Any]:
    """What the page shows of a layer during the run."""
    row = {key: getattr(layer, key) for key in ("name", "format", "bytes_before", "bytes_after")}
    return row | {"errors": asdict(layer.errors)}


def _prompt() -> tuple[str | None, str | None]:
    """The id of the prompt that is running, and of the workflow that it was queued from."""
    server = running_server()
    running = server.prompt_queue.get_current_queue_volatile()[0] if server is not None else []
    if not running:
        return None, None
    _, prompt, _, extra, *_ = running[0]
    workflow = ((extra or {}).get("extra_pnginfo") or {}).get("workflow") or {}
    return str(prompt), workflow.get("id")
