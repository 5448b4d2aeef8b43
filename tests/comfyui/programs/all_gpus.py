"""Program of test_all_gpus.py."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from calibrated_rounding.nodes.host import running
from calibrated_rounding.nodes.pipeline import quantize as pipeline
from calibrated_rounding.quant.engine import quantize
from calibrated_rounding.tests.pretend.cuda import PretendCuda
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.pack import layer_rows, load_extension, quantize_model

extension = load_extension()


def list_options() -> list[str]:
    """The choices of Quantize Model's device."""
    inputs = extension.QuantizeModel.define_schema().inputs
    return next(list(entry.options) for entry in inputs if entry.id == "device")


def quantize_on_two(source: str) -> dict[str, Any]:
    """Quantize a model on the CPU and on two pretend GPUs; the engine alone sees them."""
    model, _ = load_unet(source)
    alone, used = list_options(), list[tuple[str, ...]]()
    reference = quantize_model(model, "int8_convrot", device="cpu")

    def quantize_on_gpus(weights: Any, sink: Any, run: Any, plan: Any) -> Any:
        used.append(run.workers.devices)
        with PretendCuda(count=2):
            return quantize(weights, sink, run, plan)

    with (
        mock.patch.object(torch.cuda, "device_count", lambda: 2),
        mock.patch.object(pipeline, "quantize", quantize_on_gpus),
        mock.patch.object(running, "make_room", lambda devices, nbytes: None),
    ):
        several = list_options()
        output = quantize_model(model, "int8_convrot", device=running.ALL_GPUS)
    tensors, expected = (x.args[0].model.state_dict() for x in (output, reference))
    return {
        "alone": alone,
        "several": several,
        "used": [list(devices) for devices in used],
        "same": tensors.keys() == expected.keys() and all(_equal(tensors[key], expected[key]) for key in expected),
        "layers": [row["name"] for row in layer_rows(output)],
        "expected_layers": [row["name"] for row in layer_rows(reference)],
    }


def _equal(tensor: Any, reference: Any) -> bool:
    return bool(torch.equal(tensor.float(), reference.float()))
