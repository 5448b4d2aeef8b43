"""ComfyUI's server as nodes see it: whether one runs, which prompt it runs, and text shown in a node."""

from __future__ import annotations

import sys
from typing import Any


def running_server() -> Any | None:
    """ComfyUI's ``PromptServer``; None where none runs, as in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def current_prompt() -> tuple[str | None, str | None]:
    """The id of the prompt that is running, and the id of its workflow; None where unknown."""
    server = running_server()
    queue = server.prompt_queue.get_current_queue_volatile()[0] if server is not None else []
    if not queue:
        return None, None
    _, prompt, _, extra, *_ = queue[0]
    workflow = ((extra or {}).get("extra_pnginfo") or {}).get("workflow") or {}
    return str(prompt), workflow.get("id")


def send_text(text: str, node_id: str | None) -> None:
    """Show a line of text in a node, if a server runs."""
    server = running_server()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
