"""Program of test_overflow.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension, quantize_model


def quantize_and_save(paths: dict[str, str], output: str, fmt: str, **settings: Any) -> dict[str, dict[str, Any]]:
    """Quantize and save each model; returns the message of the error, and the files that were written."""
    extension = load_extension()
    folder_paths.set_output_directory(output)
    folder_paths.set_user_directory(str(Path(output).with_name("user")))

    def run(name: str, path: str) -> dict[str, Any]:
        def save() -> None:
            model = quantize_model(load_unet(path)[0], fmt, **settings).args[0]
            call(extension.SaveQuantizedModel, model=model, filename_prefix=f"diffusion_models/{name}")

        message = error_message(save)
        return {"message": message, "written": [str(file) for file in Path(output).rglob(f"*{name}*")]}

    return {name: run(name, path) for name, path in paths.items()}
