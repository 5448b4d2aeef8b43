"""Programs of test_blockwise.py: single layers, and stock layers on the pack's kernels."""

from __future__ import annotations

import importlib.util
import unittest
from typing import Any

import comfy.ops
import torch
from calibrated_rounding.tools.comfyui.inside.calls import count_calls
from calibrated_rounding.tools.comfyui.inside.models import describe_quantized_layers, load_unet, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import load_extension
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from torch import Tensor


def run_comfyui_tests(path: str) -> dict[str, Any]:
    """Run a test file of ComfyUI with the pack loaded."""
    load_extension()
    spec = importlib.util.spec_from_file_location("comfyui_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with torch.inference_mode(False):
        spec.loader.exec_module(module)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    failed = [f"{test}: {trace}" for test, trace in [*result.failures, *result.errors]]
    return {"count": result.testsRun, "failed": failed}


def compile_layers(weight: Tensor) -> dict[str, Any]:
    """Run a layer of each format eagerly and compiled: whether both are equal, and the graph breaks."""
    load_extension()
    x = torch.randn(2, 5, 256).bfloat16()
    with torch.inference_mode(False), torch.no_grad():
        return {fmt: compile_layer(weight, fmt, x) for fmt in ("int8_row", "int8_blockwise", "int8_blockwise_64")}


def compile_layer(weight: Tensor, fmt: str, x: Tensor) -> dict[str, Any]:
    from calibrated_rounding.quant import Recipe, quantize_tensor

    linear = comfy.ops.mixed_precision_ops({}, torch.bfloat16).Linear(256, 512, dtype=torch.bfloat16)
    tensors, _ = quantize_tensor(weight, Recipe(format=fmt, profile="generic"))
    linear.load_state_dict(tensors | {"bias": torch.ones(512)})
    expected = linear(x)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    result = torch.compile(linear, backend="eager")(x)
    return {"equal": torch.equal(result, expected), "breaks": sum(counters["graph_break"].values())}


def run_stock_layers(int8: str, table: Tensor) -> dict[str, Any]:
    """Sample a file in a stock format with the pack's kernels off, on and off again."""
    load_extension()
    from calibrated_rounding.kernels.layouts import stock

    with count_calls(stock.ops, "row_linear") as calls:
        model, _ = load_unet(int8)
        latents = sample_briefly(model, table)
        calls_off = len(calls)
        stock.enable()
        latents_on = sample_briefly(model, table)
        calls_on = len(calls)
        stock.disable()
        return {
            "calls_off": calls_off,
            "calls_on": calls_on,
            "error": relative_error(latents_on, latents),
            "off_again_equal": torch.equal(sample_briefly(model, table), latents),
            "layers": len(describe_quantized_layers(model.model.diffusion_model)),
        }
