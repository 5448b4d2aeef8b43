"""What tests do inside the host's interpreter; `Host.run` gives it to the code as ``inside``.

Imports torch, safetensors and ComfyUI, nothing of this repository, unless `load_pack` is called.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NOTHING = 10
"""Row of the digits' conditioning table that stands for "nothing asked"."""


@contextmanager
def warnings_logged() -> Iterator[list[str]]:
    """What is logged as a warning or worse inside the block."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def load_unet(path: str) -> tuple[Any, list[str]]:
    """A MODEL from the stock UNETLoader node, and the warnings that it logged."""
    import folder_paths

    import nodes

    folder_paths.add_model_folder_path("diffusion_models", str(Path(path).parent))
    folder_paths.filename_list_cache.clear()
    with warnings_logged() as warnings:
        (model,) = nodes.UNETLoader().load_unet(Path(path).name, "default")
    return model, warnings


def load_clip(path: str, kind: str) -> tuple[Any, list[str]]:
    """A CLIP from the stock CLIPLoader node, and the warnings that it logged."""
    import folder_paths

    import nodes

    folder_paths.add_model_folder_path("text_encoders", str(Path(path).parent))
    folder_paths.filename_list_cache.clear()
    with warnings_logged() as warnings:
        (clip,) = nodes.CLIPLoader().load_clip(Path(path).name, kind)
    return clip, warnings


def sample(model: Any, table: Tensor, seed: int) -> Tensor:
    """Latents ``[10, 16, 1, 8, 8]``: one of each digit, in one batch; ``table`` is ``[11, tokens, width]``."""
    import comfy.sample

    empty = torch.zeros(NOTHING, 16, 1, 8, 8)
    noise = comfy.sample.prepare_noise(empty, seed)
    positive, negative = [[table[:NOTHING], {}]], [[table[NOTHING:].expand(NOTHING, -1, -1), {}]]
    return comfy.sample.sample(
        model, noise, 20, 3.0, "euler", "simple", positive, negative, empty, seed=seed, disable_pbar=True
    )


def quantized_layers(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Layers whose weight is a QuantizedTensor: name -> layout, storage dtype and rotation group."""
    from comfy.quant_ops import QuantizedTensor

    found = {}
    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, QuantizedTensor):
            rotated = getattr(weight._params, "convrot", False)
            found[name] = {
                "layout": weight._layout_cls,
                "dtype": str(weight._qdata.dtype),
                "group": weight._params.convrot_groupsize if rotated else None,
            }
    return found


def load_pack(root: str) -> Any:
    """Import this checkout as the package ``calibrated_rounding``, whose modules can then be imported by that name."""
    path = Path(root)
    spec = importlib.util.spec_from_file_location(
        "calibrated_rounding", path / "__init__.py", submodule_search_locations=[root]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrated_rounding"] = module
    spec.loader.exec_module(module)
    return module
