"""Patches bound to a MODEL's or CLIP's modules: the quantized model gets them too, or the node refuses them."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file

REBOUND = (
    *("bypass LoRA", "bound method", "method of another block", "partial function", "another block"),
    *("method in a wrapper", "method in an injection"),
)
STUCK = {
    "closure": "object patch 'diffusion_model.blocks.0.forward'",
    "closure over a method of the model": "object patch 'apply_model'",
    "module around a module": "object patch 'diffusion_model.blocks.0'",
    "method of a function with a closure": "object patch 'diffusion_model.blocks.0.forward'",
    "wrapper with the patcher": "wrapper 'test'",
    "wrapper with the patcher, by name": "wrapper 'test'",
    "wrapper with a default": "wrapper 'test'",
    "wrapper that is a method": "wrapper 'test'",
    "wrapper with a weak reference": "wrapper 'test'",
    "callback": "callback 'test'",
    "injection": "injection 'test'",
    "model function wrapper": "option 'model_function_wrapper'",
    "attention patch": "option 'patches'",
}
HARMLESS = (
    *("another sampling", "wrapper with the sampling", "wrapper with the patcher's settings", "wrapper with data"),
    "recording",
)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    return {"source": example_model("digits_wan.safetensors"), "table": table}


@pytest.fixture(scope="module")
def rebound(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.bindings:rebind", **inputs)


@pytest.fixture(scope="module")
def refused(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    return host.call("tests.comfyui.programs.bindings:refuse", **inputs)


@pytest.mark.parametrize("case", REBOUND)
def test_bound_patches_work_on_the_quantized_model(rebound: dict[str, Any], case: str) -> None:
    assert rebound[case] == {
        "as on the quantized model": True,
        "as on the quantized model, applied before": True,
        "has an effect": True,
        "source unchanged": True,
    }


@pytest.mark.parametrize("case", STUCK)
def test_other_bound_patches_are_refused(refused: dict[str, Any], case: str) -> None:
    message = refused["stuck"][case]
    assert message == (
        f"The {STUCK[case]} of this model is bound to its float weights and cannot be moved to the quantized model; "
        "put the node that adds it after the one that quantizes."
    )


@pytest.mark.parametrize("case", HARMLESS)
def test_unbound_patches_are_kept(refused: dict[str, Any], case: str) -> None:
    assert refused["harmless"][case] is None


def test_encoders_are_treated_alike(host: Host) -> None:
    source = example_model("digits_gemma2.safetensors")
    result = host.call("tests.comfyui.programs.bindings:rebind_encoder", source=source)
    assert result["equal"] and result["has an effect"]
    assert result["stuck"].startswith("The callback 'test' of this model is bound to its float weights")
