"""The node that loads the examples' text encoder, which is smaller than ComfyUI's own loader assumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from .examples.encoder_header import read_encoder_options
from .host import folders
from .schema import EXAMPLES

FOLDER = "text_encoders"
SHIPPED = "digits_gemma2.safetensors"


class LoadExampleTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadExampleTextEncoder",
            display_name="Load Example Text Encoder",
            category=EXAMPLES,
            description="Loads the small text encoder of the examples, also quantized. It needs its own loader, "
            "because Load CLIP takes every Gemma 2 for the full-size model.",
            search_aliases=["load clip", "digits", "gemma"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.list_models(FOLDER),
                    default=SHIPPED,
                    tooltip="A file in ComfyUI's text encoder folders whose header holds the encoder's sizes; any "
                    "other file is refused.",
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
    """Load the CLIP of a file whose header holds the encoder's sizes, quantized or not.

    Raises:
        QuantError: for any other file.
    """
    options = read_encoder_options(Path(path))
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
    return folders.find_model(f"{FOLDER}/{file}")[1]
