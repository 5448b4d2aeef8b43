"""What ComfyUI loads: the list of nodes."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from ..kernels.errors import KernelError
from ..kernels.layouts import stock
from . import examples, host_formats, routes
from .blockwise_loader import LoadBlockwiseModel
from .conditioning import LoadClassConditioning
from .encoder_loader import LoadExampleTextEncoder
from .nodes_calibration import (
    CalibrateModel,
    CalibrateTextEncoder,
    CollectCalibration,
    LoadCalibration,
    RecordCalibration,
    SaveCalibration,
)
from .nodes_compare import CompareModels
from .nodes_files import QuantizeFile, SaveQuantizedModel, SaveQuantizedTextEncoder
from .nodes_quantize import QuantizeModel, QuantizeTextEncoder
from .nodes_recipe import LoadRecipe, QuantizationRecipe


class CalibratedRounding(ComfyExtension):
    async def on_load(self) -> None:
        examples.register()
        host_formats.register()
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
        return [*nodes, LoadBlockwiseModel] if host_formats.needs_own_loader() else nodes
