"""The node that says what a model file is."""

from __future__ import annotations

import os
from typing import Any

from comfy_api.latest import io

from ..quant.calibration.calibration import Calibration
from ..quant.calibration.file import is_calibration
from ..quant.reports.inspection import inspect_file
from ..quant.reports.inspection_text import inspection_lines
from .host import folders
from .page.inspected import describe_file
from .page.shown import UI_KEY
from .schema import CATEGORY


class WhatIsThisFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingInspectFile",
            display_name="What Is This File?",
            category=CATEGORY,
            description="Says what a model file of any maker is: formats, sizes, how it was made, and what ComfyUI "
            "does with it on this machine. Only the header and the scales are read.",
            search_aliases=["inspect", "file info", "metadata", "quantized file", "gguf", "nf4", "which format"],
            inputs=[io.Combo.Input("file", options=folders.list_any_files(), tooltip="Any model file.")],
            outputs=[io.String.Output("report", tooltip="Every layer and tensor, metadata and obstacles.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> Any:
        stat = os.stat(folders.find_any_file(file)) if file else None
        return stat and (stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        path = folders.find_any_file(file)
        if is_calibration(path):
            report = Calibration.load(path).summary()
        else:
            report = "\n".join(inspection_lines(inspect_file(path)))
        return io.NodeOutput(report, ui={UI_KEY: [{"inspected": describe_file(path)}], "text": [report]})
