"""What ComfyUI loads: the list of nodes."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from ..kernels.errors import KernelError
from ..kernels.layouts import stock
from .examples import folders as examples
from .host import registration
from .nodes_blockwise import LoadBlockwiseModel
from .nodes_calibration import (
    CalibrateModel,
    CalibrateTextEncoder,
    CollectCalibration,
    LoadCalibration,
    RecordCalibration,
    SaveCalibration,
)
from .nodes_compare import CompareModels
from .nodes_conditioning import LoadClassConditioning
from .nodes_example_encoder import LoadExampleTextEncoder
from .nodes_files import QuantizeFile, SaveQuantizedModel, SaveQuantizedTextEncoder
from .nodes_quantize import QuantizeModel, QuantizeTextEncoder
from .nodes_recipe import LoadRecipe, QuantizationRecipe
from .page import routes


class CalibratedRounding(ComfyExtension):
    async def on_load(self) -> None:
        examples.register()
        registration.register()
        try:
            stock.apply_setting()
        except KernelError as error:
            logging.warning("calibrated-rounding: %s", error)
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes: list[type[io.ComfyNode]] = [
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
            CalibrateTextEncoder,
            SaveCalibration,
            LoadCalibration,
            CompareModels,
            LoadClassConditioning,
            LoadExampleTextEncoder,
        ]
        return [*nodes, LoadBlockwiseModel] if registration.needs_own_loader() else nodes
