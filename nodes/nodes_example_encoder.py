"""Loads text encoders that are smaller than those that ComfyUI's own loader takes a file for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from .examples import encoder_header
from .pipeline import files

FOLDER = "text_encoders"
SHIPPED = "digits_gemma2.safetensors"


class LoadExampleTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadExampleTextEncoder",
            display_name="Load Example Text Encoder",
            category="model/loaders",
            description="Loads the small text encoder of the examples, or what was quantized of it. It needs a loader "
            "of its own, because Load CLIP takes every Gemma 2 for one of full size.",
            search_aliases=["load clip", "digits", "gemma"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files.names(FOLDER),
                    default=SHIPPED,
                    tooltip="A file of ComfyUI's text encoder folders that states its sizes in its header; any other "
                    "is refused.",
                )
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> float | None:
        return os.path.getmtime(_path(file)) if file else None

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load(_path(file)))


def load(path: str) -> Any:
    """The CLIP of a file that states its sizes, quantized or not. Raises QuantError for any other file."""
    options = encoder_header.stated(Path(path))
    clip = comfy.sd.load_clip(
        [path],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.LUMINA2,
        model_options=options.model,
    )
    for name, value in options.tokenizer.items():
        clip.set_tokenizer_option(name, value)
    return clip


def _path(file: str) -> str:
    return files.model_path(f"{FOLDER}/{file}")[1]
