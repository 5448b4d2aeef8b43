"""What ComfyUI loads: the list of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import examples, routes
from .conditioning import LoadClassConditioning
from .nodes_calibration import CalibrateModel, CollectCalibration, LoadCalibration, RecordCalibration, SaveCalibration
from .nodes_files import QuantizeFile, SaveQuantizedModel, SaveQuantizedTextEncoder
from .nodes_quantize import QuantizeModel, QuantizeTextEncoder
from .nodes_recipe import LoadRecipe, QuantizationRecipe


class CalibratedRounding(ComfyExtension):
    async def on_load(self) -> None:
        examples.register()
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            QuantizeModel,
            QuantizeTextEncoder,
            SaveQuantizedModel,
            SaveQuantizedTextEncoder,
            QuantizeFile,
            QuantizationRecipe,
            LoadRecipe,
            RecordCalibration,
            CollectCalibration,
            CalibrateModel,
            SaveCalibration,
            LoadCalibration,
            LoadClassConditioning,
        ]
