"""The node that loads class conditionings, for models that take a class instead of a text."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from safetensors import SafetensorError, safe_open

from .schema import EXAMPLES

SHIPPED = Path(__file__).resolve().parents[1] / "examples" / "models" / "conditioning"
KEY = "conditioning"


def list_tables() -> dict[str, Path]:
    """Menu name -> file: the pack's tables, then every other safetensors file in ComfyUI's input folder."""
    files: dict[str, Path] = {}
    for folder in (SHIPPED, Path(folder_paths.get_input_directory())):
        for path in sorted(folder.glob("*.safetensors")):
            files.setdefault(path.name, path)
    return files


class LoadClassConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadClassConditioning",
            display_name="Load Class Conditioning",
            category=EXAMPLES,
            description="Loads one class of a table of class conditionings, for models that take a class instead of a "
            "text.",
            search_aliases=["class label", "digits"],
            inputs=[
                io.Combo.Input(
                    "table",
                    options=list(list_tables()),
                    tooltip=f"A safetensors file with a tensor '{KEY}' [classes, tokens, width], from the pack's "
                    "examples or ComfyUI's input folder.",
                ),
                io.Int.Input(
                    "class_index",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Row of the table. In the example model's table, 0 to 9 are the digits and 10 is no class.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, table: str, class_index: int) -> tuple[str, int, float | None]:
        path = list_tables().get(table)
        return table, class_index, os.path.getmtime(path) if path else None

    @classmethod
    def execute(cls, table: str, class_index: int) -> io.NodeOutput:
        path = list_tables().get(table)
        if path is None:
            raise ValueError(f"The conditioning table '{table}' is gone; put it into ComfyUI's input folder.")
        try:
            with safe_open(path, "pt") as file:
                rows = file.get_slice(KEY)
                classes, *row = rows.get_shape()
                if len(row) != 2:
                    raise ValueError(f"'{KEY}' in '{table}' must be [classes, tokens, width]; it is {[classes, *row]}.")
                if class_index >= classes:
                    raise ValueError(
                        f"'{table}' has {classes} classes, 0 to {classes - 1}; class_index is {class_index}."
                    )
                tensor = rows[class_index : class_index + 1]
        except SafetensorError:
            raise ValueError(f"'{table}' is not a conditioning table: it holds no tensor '{KEY}' to read.") from None
        return io.NodeOutput([[tensor, {}]])
