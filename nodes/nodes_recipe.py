"""The nodes that make and load recipes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..quant.files import read_header
from ..quant.reports.provenance import read_recipe
from .host import folders
from .recipe.inputs import QuantRecipe, recipe_inputs
from .recipe.values import make_recipe
from .schema import CATEGORY


class QuantizationRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingRecipe",
            display_name="Quantization Recipe",
            category=CATEGORY,
            description="Format, profile, rounding and all other settings for several quantize nodes.",
            search_aliases=["quantization settings", "quantize options"],
            inputs=recipe_inputs(),
            outputs=[QuantRecipe.Output("recipe", tooltip="For the recipe input of quantize nodes.")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(make_recipe(values))


class LoadRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadRecipe",
            display_name="Load Quantization Recipe",
            category=CATEGORY,
            description="Loads the recipe from a file that this pack has written. The node shows the recipe.",
            search_aliases=["recipe from file", "quantization metadata"],
            inputs=[
                io.Combo.Input(
                    "file", options=folders.list_recipe_files(), tooltip="A file that this pack has written."
                )
            ],
            outputs=[QuantRecipe.Output("recipe", tooltip="For the recipe input of quantize nodes.")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(read_recipe(read_header(folders.find_model(file)[1]).metadata, file))
