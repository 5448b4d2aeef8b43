"""calibrated-rounding, a ComfyUI custom-node pack: quantizes diffusion models and text encoders to FP8 and INT8."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls to get the nodes; outside ComfyUI importing this package imports nothing."""
    from .nodes.extension import CalibratedRounding

    return CalibratedRounding()
