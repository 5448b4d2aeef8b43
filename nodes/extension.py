"""The extension that ComfyUI loads: the pack's nodes, and its additions to ComfyUI at start-up."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from ..kernels.errors import KernelError
from ..kernels.layouts import stock
from .examples.folders import add_example_folders
from .host import registration, six_bits
from .nodes_blockwise import LoadBlockwiseModel
from .nodes_calibration import CalibrateModel, CalibrateTextEncoder, CollectCalibration, RecordCalibration
from .nodes_calibration_files import LoadCalibration, SaveCalibration
from .nodes_compare import CompareModels
from .nodes_conditioning import LoadClassConditioning
from .nodes_example_encoder import LoadExampleTextEncoder
from .nodes_files import QuantizeFile, SaveQuantizedModel, SaveQuantizedTextEncoder
from .nodes_inspect import WhatIsThisFile
from .nodes_quantize import QuantizeModel, QuantizeTextEncoder
from .nodes_recipe import LoadRecipe, QuantizationRecipe
from .nodes_size import QuantizeToSize
from .page.routes import add_routes
from .pipeline.quantize import cache

NODES: list[type[io.ComfyNode]] = [
    QuantizeModel,
    QuantizeTextEncoder,
    QuantizeToSize,
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
    WhatIsThisFile,
    LoadClassConditioning,
    LoadExampleTextEncoder,
]


class CalibratedRounding(ComfyExtension):
    async def on_load(self) -> None:
        add_example_folders()
        registration.register()
        six_bits.register()
        try:
            stock.apply_setting()
        except KernelError as error:
            logging.warning("calibrated-rounding: %s", error)
        _clean_cache()
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*NODES, LoadBlockwiseModel] if registration.needs_own_loader() else NODES


def _clean_cache() -> None:
    """Remove the unfinished files that a killed ComfyUI has left in the cache, each as large as a model."""
    try:
        cache().prune()
    except OSError as error:
        logging.warning("calibrated-rounding: the cache folder cannot be cleaned: %s", error)
