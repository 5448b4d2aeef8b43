"""ComfyUI's description of the pack's nodes, for tools/locales.py."""

from __future__ import annotations

import asyncio
from typing import Any

from calibrated_rounding.tools.comfyui.inside.pack import load_extension
from comfy_api.latest import io


def read_node_info() -> dict[str, Any]:
    """Read the ``/object_info`` of every node, also of nodes that this ComfyUI would not register."""
    extension = load_extension()
    registered = asyncio.run(extension.CalibratedRounding().get_node_list())
    classes = [
        value for value in vars(extension).values() if isinstance(value, type) and issubclass(value, io.ComfyNode)
    ]
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in dict.fromkeys([*registered, *classes])}
