"""The machine as ComfyUI sees it: what its card multiplies, which formats its loaders know, its memory."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_management
import comfy.quant_ops
import torch

from ...quant.formats import FORMATS, Format
from ...quant.planning.machine import NEEDED, Machine

COMPUTE: Mapping[str, str] = {
    "float8_e4m3fn": "supports_fp8_compute",
    "mxfp8": "supports_mxfp8_compute",
    # Since 0.38; older versions compute INT8 on every device.
    "int8_tensorwise": "supports_int8_compute",
    "asym_w4a8_int8": "supports_int8_compute",
    "w6a8_int8": "supports_int8_compute",
    "nvfp4": "supports_nvfp4_compute",
}
"""Marker's format -> the function of ComfyUI's model_management that says whether a device computes in it."""


def describe_machine() -> Machine:
    """The device that ComfyUI runs models on."""
    known = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
    return Machine(
        title=device_title(),
        memory=int(comfy.model_management.get_total_memory(comfy.model_management.get_torch_device())),
        computes=frozenset(
            name for name, fmt in FORMATS.items() if computes(fmt) is not False and not fmt.needs_full_precision
        ),
        loads=frozenset(name for name, fmt in FORMATS.items() if fmt.comfyui_name in known),
    )


def computes(fmt: Format) -> bool | None:
    """Whether the present device multiplies in the format; None if this ComfyUI cannot tell."""
    device = comfy.model_management.get_torch_device()
    if not fmt.stock:
        return _multiplies(fmt, device)
    native = getattr(comfy.model_management, COMPUTE.get(fmt.comfyui_name, ""), None)
    return None if native is None else bool(native(device))


def _multiplies(fmt: Format, device: torch.device) -> bool:
    """Whether the pack's own kernels multiply in the format: on a CPU they compute in float32."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= NEEDED[fmt.comfyui_name]


def device_title() -> str:
    device = comfy.model_management.get_torch_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
