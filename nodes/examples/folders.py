"""The folders of the example models, for the stock loaders' menus."""

from __future__ import annotations

from pathlib import Path

import folder_paths

MODELS = Path(__file__).parents[2] / "examples" / "models"

FOLDERS = {kind: kind for kind in ("diffusion_models", "text_encoders", "vae")} | {"vae_approx": "vae"}
"""Kind of model folder in ComfyUI -> folder of the examples with models of that kind."""


def add_example_folders() -> None:
    """Add the example folders that exist to ComfyUI's model folders."""
    for kind, name in FOLDERS.items():
        if (MODELS / name).is_dir():
            folder_paths.add_model_folder_path(kind, str(MODELS / name))
