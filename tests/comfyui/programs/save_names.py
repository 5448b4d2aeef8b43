"""Program of test_save_names.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import torch
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.tools.comfyui.inside.errors import error_message
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.pack import NEAREST, call, load_extension, quantize_model


def save_under_names(source: str, output: str, names: list[str]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Save twice under each name with each node that writes files; returns what happened, by node and name."""
    extension = load_extension()
    folder_paths.set_output_directory(output)
    folder_paths.set_user_directory(str(Path(output).with_name("user")))
    folder_paths.add_model_folder_path("diffusion_models", str(Path(source).parent))
    model = quantize_model(load_unet(source)[0], "int8_row").args[0]
    known = InputStatistics(rows=torch.ones(8, 16, dtype=torch.float16), mean=torch.ones(16), absmax=1.0, count=8)
    calibration = Calibration(samples={"a": known}, shared={"a": "a"}, fingerprints={})
    file = {"file": f"diffusion_models/{Path(source).name}", "format": "int8_row", "rounding": NEAREST}
    savers: dict[str, Callable[[str], Any]] = {
        "SaveQuantizedModel": lambda name: call(extension.SaveQuantizedModel, model=model, filename_prefix=name),
        "SaveCalibration": lambda name: call(extension.SaveCalibration, calibration=calibration, name=name),
        "QuantizeFile": lambda name: call(extension.QuantizeFile, profile="auto", name=name, **file),
    }
    folder = Path(output)
    return {
        node: {name: [save_once(save, name, folder), save_once(save, name, folder)] for name in names}
        for node, save in savers.items()
    }


def save_once(save: Callable[[str], Any], name: str, folder: Path) -> dict[str, Any]:
    """Save under a name; returns the error, the new files, and the files that were altered or removed."""
    before = read_digests(folder)
    message = error_message(lambda: save(name))
    after = read_digests(folder)
    return {
        "message": message,
        "new": sorted(after.keys() - before.keys()),
        "lost": sorted(path for path, digest in before.items() if after.get(path) != digest),
    }


def read_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
