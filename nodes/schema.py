"""Parts of the nodes' schemas that several nodes share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..quant.calibration.calibration import Calibration
from .host.running import AUTO, list_choices
from .recipe.inputs import QuantCalibration

CATEGORY = "model/quantization"
EXAMPLES = f"{CATEGORY}/examples"
"""Category of the nodes that only the examples need."""

SEARCH_WORDS = (
    *("quantize", "quantization", "fp8", "int8", "mxfp8", "convrot", "hadamard", "gptq", "ldlq", "w8a8", "w8a16"),
    *("convert", "compress", "shrink", "low vram", "less memory", "gguf", "gguf alternative"),
    *("calibrated rounding", "learned rounding"),
)
"""Words that people search for when they want to quantize."""


def device_input() -> io.Input:
    return io.Combo.Input(
        "device",
        options=list_choices(),
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip="Where the rounding is computed; auto is where ComfyUI runs models. all GPUs, where there are several: "
        "each takes some of the layers.",
    )


def merge_input() -> io.Input:
    return io.Boolean.Input(
        "merge_loras",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Merge the LoRAs and other weight patches of the input into the weights before they are quantized, "
        "instead of keeping them as patches. ComfyUI rounds a quantized layer again, without calibration, when it "
        "applies a LoRA. Record the calibration with the same LoRAs.",
    )


def report_output() -> io.Output:
    return io.String.Output("report", tooltip="Format, size and errors of every layer, and the totals.")


def calibration_outputs() -> list[io.Output]:
    return [
        QuantCalibration.Output("calibration", tooltip="For the calibration input of quantize nodes."),
        io.String.Output("report", tooltip="Number of layers and rows, the size, and layers that were not recorded."),
    ]


def to_node_output(calibration: Calibration, ui: dict[str, Any]) -> io.NodeOutput:
    """The values of `calibration_outputs`, and what the node shows."""
    return io.NodeOutput(calibration, calibration.summary(), ui=ui)
