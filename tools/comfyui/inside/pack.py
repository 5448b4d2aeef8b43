"""The pack's nodes in ComfyUI's interpreter, called as ComfyUI calls them.

Importing this file imports no node: some programs begin without the pack.
"""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace
from typing import Any

from calibrated_rounding.tools.comfyui.workflows import table

NEAREST = {"rounding": "nearest"}
CALIBRATED = {"rounding": "calibrated", "damping": 0.0, "passes": 2}


def load_extension() -> ModuleType:
    """Load the pack as ComfyUI does; returns its extension module, whose names are the node classes."""
    from calibrated_rounding.nodes import extension

    asyncio.run(extension.CalibratedRounding().on_load())
    return extension


def call(node: Any, unique_id: str | None = None, **inputs: Any) -> Any:
    """Execute a V3 node class as ComfyUI does; returns its NodeOutput. ``format`` may be a name alone."""
    if isinstance(inputs.get("format"), str):
        inputs["format"] = {"format": inputs["format"]}
    clone = node.PREPARE_CLASS_CLONE(None)
    clone.hidden = SimpleNamespace(unique_id=unique_id, prompt=None, extra_pnginfo=None)
    return clone.EXECUTE_NORMALIZED(**inputs)


def quantize_model(model: Any, fmt: str, rounding: dict[str, Any] = NEAREST, **settings: Any) -> Any:
    """Execute Quantize Model; returns its NodeOutput."""
    from calibrated_rounding.nodes.extension import QuantizeModel

    return call(QuantizeModel, **{"model": model, "format": fmt, "profile": "auto", "rounding": rounding, **settings})


def quantize_encoder(clip: Any, fmt: str, rounding: dict[str, Any] = NEAREST, **settings: Any) -> Any:
    """Execute Quantize Text Encoder; returns its NodeOutput."""
    from calibrated_rounding.nodes.extension import QuantizeTextEncoder

    return call(
        QuantizeTextEncoder, **{"clip": clip, "format": fmt, "profile": "auto", "rounding": rounding, **settings}
    )


def layer_rows(output: Any) -> list[dict[str, Any]]:
    """Read the layers that a quantize node's output shows."""
    return table(output.ui["calibrated_rounding"][0]["layers"])


def svd_rounding(optimizer: str, iterations: int = 10) -> dict[str, Any]:
    """Make the value of the ``rounding`` input for learned rounding."""
    steps = {} if optimizer == "feedback" else {"iterations": iterations, "learning_rate": 0.0}
    settings = {"top_p": 0.2, "min_k": 64, "max_k": 256, "metric": "weight", "exact_svd": False, "random_seed": 0}
    return {"rounding": "svd", "optimizer": {"optimizer": optimizer, **steps}, **settings}
