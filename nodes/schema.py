"""What the schemas of several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

from .host.running import DEVICES

CATEGORY = "model/quantization"


def device_input() -> io.Input:
    return io.Combo.Input(
        "device",
        options=list(DEVICES),
        default="auto",
        optional=True,
        advanced=True,
        tooltip="Where the rounding is computed; auto is where ComfyUI runs models.",
    )


def report_output() -> io.Output:
    return io.String.Output("report", tooltip="What was done, layer by layer, and what it cost.")
