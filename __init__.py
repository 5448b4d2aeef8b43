"""calibrated-rounding, a ComfyUI custom-node pack: quantizes models and text encoders to INT8, FP8, 6 and 4 bits."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls to get the nodes; outside ComfyUI importing this package imports nothing."""
    from .nodes.extension import CalibratedRounding

    return CalibratedRounding()
