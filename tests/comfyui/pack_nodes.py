"""Calls this checkout's nodes inside the host's interpreter, for the code given to `Host.run`; imports nothing else."""

import asyncio
from types import SimpleNamespace
from typing import Any

import inside
import torch
import workflows
from torch import Tensor

NEAREST = {"rounding": "nearest"}
CALIBRATED = {"rounding": "calibrated", "damping": 0.0, "passes": 2}


def load(root: str) -> Any:
    """The pack's extension module, whose names are the node classes, loaded as the host loads it."""
    inside.load_pack(root)
    from calibrated_rounding.nodes import extension

    asyncio.run(extension.CalibratedRounding().on_load())
    return extension


def call(node: Any, unique_id: str | None = None, **inputs: Any) -> Any:
    """Execute a V3 node class as the host does; gives its NodeOutput. ``format`` may be a name alone."""
    if isinstance(inputs.get("format"), str):
        inputs["format"] = {"format": inputs["format"]}
    clone = node.PREPARE_CLASS_CLONE(None)
    clone.hidden = SimpleNamespace(unique_id=unique_id, prompt=None, extra_pnginfo=None)
    return clone.EXECUTE_NORMALIZED(**inputs)


def layers(output: Any) -> list[dict[str, Any]]:
    """What a quantize node's output tells of each layer."""
    return workflows.table(output.ui["calibrated_rounding"][0]["layers"])


def svd(optimizer: str, iterations: int = 10) -> dict[str, Any]:
    """The value of the ``rounding`` input for learned rounding."""
    steps = {} if optimizer == "feedback" else {"iterations": iterations, "learning_rate": 0.0}
    settings = {"top_p": 0.2, "min_k": 64, "max_k": 256, "metric": "weight", "exact_svd": False, "random_seed": 0}
    return {"rounding": "svd", "optimizer": {"optimizer": optimizer, **steps}, **settings}


def sample(model: Any, table: Tensor) -> Tensor:
    """Latents of two digits after four steps: enough to tell models apart bit by bit, and quick."""
    import comfy.sample

    empty = torch.zeros(2, 16, 1, 8, 8)
    noise = comfy.sample.prepare_noise(empty, 0)
    positive, negative = [[table[:2], {}]], [[table[inside.NOTHING :].expand(2, -1, -1), {}]]
    return comfy.sample.sample(
        model, noise, 4, 3.0, "euler", "simple", positive, negative, empty, seed=0, disable_pbar=True
    )
