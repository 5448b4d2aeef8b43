"""Makes the stock loaders list the pack's example models."""

from __future__ import annotations

from pathlib import Path

import folder_paths

MODELS = Path(__file__).parents[2] / "examples" / "models"

FOLDERS = {kind: kind for kind in ("diffusion_models", "text_encoders", "vae")} | {"vae_approx": "vae"}
"""A kind of model folder, and the folder of the examples that holds such models."""


def register() -> None:
    """Add the example folders that exist to ComfyUI's model folders."""
    for kind, name in FOLDERS.items():
        if (MODELS / name).is_dir():
            folder_paths.add_model_folder_path(kind, str(MODELS / name))
