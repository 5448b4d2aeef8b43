"""ComfyUI's server as nodes see it: whether one runs, which prompt it runs, and text shown in a node."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]
"""A prompt's nodes by id, as the API format has them."""


def running_server() -> Any | None:
    """ComfyUI's ``PromptServer``; None where none runs, as in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def current_prompt() -> tuple[str | None, str | None]:
    """The id of the prompt that is running, and the id of its workflow; None where unknown."""
    running = _running_prompt()
    if running is None:
        return None, None
    _, prompt, _, extra, *_ = running
    workflow = ((extra or {}).get("extra_pnginfo") or {}).get("workflow") or {}
    return str(prompt), workflow.get("id")


def current_graph() -> Graph:
    """The nodes of the prompt that is running; empty where unknown."""
    running = _running_prompt()
    return {} if running is None else running[2]


def _running_prompt() -> Any | None:
    """The queue's entry: number, prompt id, graph, extra data, and more."""
    server = running_server()
    queue = server.prompt_queue.get_current_queue_volatile()[0] if server is not None else []
    return queue[0] if queue else None


def send_text(text: str, node_id: str | None) -> None:
    """Show a line of text in a node, if a server runs."""
    server = running_server()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
