"""Program of test_memory.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import folder_paths
import torch
from calibrated_rounding.quant.layer import nearest
from calibrated_rounding.quant.rounding import calibrated
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import count_hooks, load_unet
from calibrated_rounding.tools.comfyui.inside.pack import (
    CALIBRATED,
    NEAREST,
    call,
    layer_rows,
    load_extension,
    quantize_model,
)
from calibrated_rounding.tools.comfyui.inside.sampling import conditions, sample_briefly
from torch import Tensor

extension = load_extension()


def run_out_of_memory(source: str, table: Tensor, output: str) -> dict[str, Any]:
    """Run out of memory in the third call of a function while calibrating, in nearest and in calibrated rounding."""
    folder_paths.set_output_directory(output)
    folder_paths.set_user_directory(output)
    model, _ = load_unet(source)
    state = State(model, table, output)

    def quantize(rounding: dict[str, Any], calibration: Any = None) -> Any:
        return quantize_model(model, "int8_row", rounding, calibration=calibration)

    layer = model.model.diffusion_model.blocks[1].ffn[0]
    calibrating = state.attempt(layer, "forward", lambda: calibrate(model, table))
    calibration = calibrate(model, table)
    return {
        "calibrating": calibrating,
        "nearest": state.attempt(nearest, "round_nearest", lambda: quantize(NEAREST)),
        "calibrated": state.attempt(calibrated, "round_by_ldlq", lambda: quantize(CALIBRATED, calibration)),
        "next_layers": len(layer_rows(quantize(CALIBRATED, calibration))),
    }


def calibrate(model: Any, table: Tensor) -> Any:
    settings = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "rows": 256, "budget_gib": 1.0}
    latent = {"samples": torch.zeros(2, 16, 1, 8, 8)}
    return call(
        extension.CalibrateModel, model=model, **conditions(table, 2), latent_image=latent, seed=0, runs=1, **settings
    ).args[0]


class State:
    """A loaded model and a folder as they are before memory runs out."""

    def __init__(self, model: Any, table: Tensor, output: str) -> None:
        self.model, self.table, self.output = model, table, output
        self.weights = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
        self.latents = sample_briefly(model, table)

    def attempt(self, owner: Any, name: str, action: Callable[[], object]) -> dict[str, Any]:
        """Run an action in which the third call of a function runs out of memory; returns what it left."""
        function, files, hooks = getattr(owner, name), self._list_files(), list[int]()

        def failing(*args: Any, **kwargs: Any) -> Any:
            hooks.append(count_hooks(self.model.model))
            if len(hooks) == 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
            return function(*args, **kwargs)

        setattr(owner, name, failing)
        try:
            message = error_message(action, with_type=True)
        finally:
            setattr(owner, name, function)
        weights = self.model.model.state_dict()
        return {
            "message": message,
            "hooks_during": hooks[-1],
            "hooks_left": count_hooks(self.model.model),
            "files_left": [file for file in self._list_files() if file not in files],
            "weights_equal": weights.keys() == self.weights.keys()
            and all(torch.equal(weights[key], tensor) for key, tensor in self.weights.items()),
            "latents_equal": torch.equal(self.latents, sample_briefly(self.model, self.table)),
        }

    def _list_files(self) -> list[str]:
        """Names of all files but finished layers, which wait for the next run."""
        return sorted(
            name for folder, _, names in os.walk(self.output) if os.path.basename(folder) != "layers" for name in names
        )
