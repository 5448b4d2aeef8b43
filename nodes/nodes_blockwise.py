"""The node that loads ``int8_blockwise`` models where ComfyUI's own loaders cannot be taught the format."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..quant import QuantError
from ..quant.formats import BLOCKWISE
from .host import folders, registration

FOLDER = "diffusion_models"


class LoadBlockwiseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadBlockwiseModel",
            display_name="Load Block-wise Model",
            category="model/loaders",
            description="Loads a diffusion model with block-wise INT8 layers, which this ComfyUI's own loaders cannot "
            "read.",
            search_aliases=["load int8_blockwise", "load quantized model", "block-wise int8"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.list_models(FOLDER),
                    tooltip="A diffusion model file with int8_blockwise layers.",
                )
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load(folders.find_model(f"{FOLDER}/{file}")[1]))


def load(path: str, disable_dynamic: bool = False) -> Any:
    """Load a MODEL as ComfyUI's loader does, with the operations of `make_operations`.

    Args:
        path: The file.
        disable_dynamic: As ComfyUI's loaders take it.

    Raises:
        QuantError: if ComfyUI does not recognise the model.
    """
    tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    prefixes = {comfy.model_detection.unet_prefix_from_state_dict(tensors): ""}
    tensors = comfy.utils.state_dict_prefix_replace(dict(tensors), prefixes, filter_keys=True) or tensors
    config = comfy.model_detection.model_config_from_unet(tensors, "", metadata=metadata)
    if config is None:
        raise QuantError(f"ComfyUI does not recognise the model in {path}.")
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_manual_cast(None, device, config.supported_inference_dtypes)
    options = {"custom_operations": make_operations(dtype)}
    patcher = comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata, disable_dynamic)
    patcher.cached_patcher_init = (load, (path,))
    return patcher


def make_operations(dtype: torch.dtype) -> Any:
    """ComfyUI's operations for quantized layers, with linear layers that know the format; they compute in ``dtype``."""
    # Where layers look up that ComfyUI must not quantize their inputs.
    comfy.quant_ops.QUANT_ALGOS.setdefault(BLOCKWISE, registration.LAYERS_ONLY)
    stock = comfy.ops.mixed_precision_ops({}, dtype)

    class Linear(stock.Linear):  # type: ignore[misc, name-defined]
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
            if registration.marked(state_dict, prefix):
                plain = partial(torch.nn.Module._load_from_state_dict, self)
                registration.load_layer(self, plain, state_dict, prefix, *args)
            else:
                super()._load_from_state_dict(state_dict, prefix, *args)

        def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
            saved = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            return registration.complete_marker(self, saved, prefix)

    return type("BlockwiseOperations", (stock,), {"Linear": Linear})
