"""Programs of test_plain_forward.py.

Newer versions of ComfyUI compute a linear layer and the activation before it in one call, which skips the layer's
``forward``, and plan their memory ahead. The digits model gets such calls here, under the newer versions' names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from calibrated_rounding.nodes.host.encoding import calibrate_encoder
from calibrated_rounding.nodes.host.probing import SamplingProbe
from calibrated_rounding.nodes.host.recording import attach_recorder
from calibrated_rounding.nodes.nodes_example_encoder import load
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.sampling import sample_briefly
from comfy.cli_args import args
from torch import Tensor

LAYER = "blocks.0.ffn.2"
BUDGET = 2**30


class FusedLinear:
    """Calls a linear layer as newer versions of ComfyUI do: around its ``forward``, unless a flag forbids it."""

    def __init__(self, layer: torch.nn.Linear, flag: str | None) -> None:
        self.layer, self.flag = layer, flag
        self.plain_calls: list[bool] = []
        self.compiler_off: list[Any] = []

    def __call__(self, x: Tensor) -> Tensor:
        plain = self.flag is not None and getattr(self.layer, self.flag, False)
        self.plain_calls.append(plain)
        self.compiler_off.append(getattr(args, "disable_comfy_compiler", None))
        if plain:
            return self.layer(x)
        weight, bias = self.layer.weight.to(x.dtype), self.layer.bias
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    def state(self) -> dict[str, Any]:
        """Which calls were plain, and whether flags are left on the layer."""
        return {
            "plain": sorted(set(self.plain_calls)),
            "compiler_off": sorted(set(self.compiler_off), key=str),
            "left": [name for name in ("comfy_force_forward", "_full_precision_mm") if name in vars(self.layer)],
        }


def fuse(model: Any, flag: str | None) -> FusedLinear:
    """Fuse `LAYER` of the digits model."""
    feed_forward = model.model.diffusion_model.blocks[0].ffn
    fused = FusedLinear(feed_forward[2], flag)
    feed_forward.forward = lambda x: fused(feed_forward[1](feed_forward[0](x)))
    return fused


def record(source: str, table: Tensor, flag: str | None) -> dict[str, Any]:
    """Record a sampling in which one layer is fused."""
    model, _ = load_unet(source)
    fused = fuse(model, flag)
    recording, recorder = attach_recorder(model, 64, BUDGET)
    sample_briefly(recording, table)
    calibration = recorder.calibration()
    return {"recorded": LAYER in calibration, **describe(calibration), **fused.state()}


def describe(calibration: Calibration) -> dict[str, Any]:
    return {"unrecorded": list(calibration.unrecorded), "summary": calibration.summary()}


def probe(source: str, table: Tensor, flag: str) -> dict[str, Any]:
    """Measure the sensitivity of a fused layer."""
    model, _ = load_unet(source)
    fused = fuse(model, flag)
    sensitivities = SamplingProbe(model).measure([LAYER], lambda patcher, _: sample_briefly(patcher, table))
    return {"measured": list(sensitivities), **fused.state()}


def encode(source: str, flag: str) -> dict[str, Any]:
    """Record a text encoder in which one layer is fused."""
    clip = load(source)
    mlp = next(module for name, module in clip.cond_stage_model.named_modules() if name.endswith("layers.0.mlp"))
    fused = FusedLinear(mlp.down_proj, flag)
    mlp.forward = lambda x: fused(mlp.activation(mlp.gate_proj(x)) * mlp.up_proj(x))
    calibration = calibrate_encoder(clip, ["a handwritten seven"], 64, BUDGET)
    return {"recorded": "model.layers.0.mlp.down_proj" in calibration, **describe(calibration), **fused.state()}


def watch_compiler(source: str, table: Tensor) -> dict[str, Any]:
    """The option that switches the compiler off, during and after a recording, for each value before it."""

    outcomes = {}
    cases: dict[str, Callable[[], object]] = {
        "absent": lambda: vars(args).pop("disable_comfy_compiler", None),
        "on": lambda: setattr(args, "disable_comfy_compiler", False),
        "off": lambda: setattr(args, "disable_comfy_compiler", True),
    }
    for name, prepare in cases.items():
        model, _ = load_unet(source)
        fused = fuse(model, "comfy_force_forward")
        recording, _ = attach_recorder(model, 64, BUDGET)
        prepare()
        sample_briefly(recording, table)
        outcomes[name] = {"during": fused.state()["compiler_off"], "after": vars(args).get("disable_comfy_compiler")}
        failing = fail_within(recording, table)
        outcomes[name]["after an error"] = [failing, vars(args).get("disable_comfy_compiler"), fused.state()["left"]]
    return outcomes


def fail_within(model: Any, table: Tensor) -> str:
    """Sample with a model that fails, and say with what."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("broken")

    hook = model.model.diffusion_model.blocks[1].register_forward_pre_hook(fail)
    try:
        sample_briefly(model, table)
    except ZeroDivisionError as error:
        return str(error)
    finally:
        hook.remove()
    return ""
