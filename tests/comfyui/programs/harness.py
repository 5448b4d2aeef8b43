"""Programs of test_harness.py."""

from __future__ import annotations

import sys
import time
from typing import Any

import comfy.model_management
import torch


def echo(**inputs: Any) -> dict[str, Any]:
    return inputs


def describe_process() -> dict[str, Any]:
    """Read in what state programs run."""
    pack = tuple(f"calibrated_rounding.{part}" for part in ("nodes", "quant", "kernels"))
    return {
        "inference": torch.is_inference_mode_enabled(),
        "device": str(comfy.model_management.get_torch_device()),
        "fp8_compute": comfy.model_management.supports_fp8_compute(),
        "pack": [name for name in sys.modules if name.startswith(pack)],
    }


def fail() -> dict[str, Any]:
    raise ZeroDivisionError


def sleep() -> dict[str, Any]:
    time.sleep(600)
    return {}
