"""The nodes that keep calibrations as files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..quant.calibration.calibration import Calibration
from .host import folders
from .page.shown import show_calibration, show_files
from .pipeline import saving
from .pipeline.naming import check_name, describe_tokens, find_model_name
from .recipe.inputs import QuantCalibration
from .schema import CATEGORY, calibration_outputs, to_node_output

TOKENS = ("model",)
"""The pack's own tokens in the name of a calibration."""


class SaveCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingSaveCalibration",
            display_name="Save Calibration",
            category=CATEGORY,
            description="Writes a calibration into the output folder, for Load Calibration and the command line's "
            "--calibration.",
            search_aliases=["export calibration"],
            inputs=[
                QuantCalibration.Input("calibration", tooltip="From any of the calibration nodes."),
                io.String.Input(
                    "name",
                    default="%model%_calibration",
                    tooltip=f"Name of the file in output/{folders.CALIBRATIONS}; a number is added. "
                    + describe_tokens(TOKENS),
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return check_name(name, TOKENS)

    @classmethod
    def execute(cls, calibration: Calibration, name: str) -> io.NodeOutput:
        words = {"model": find_model_name(cls.hidden.prompt, cls.hidden.unique_id) or "model"}
        path = folders.choose_output_path(f"{folders.CALIBRATIONS}/{saving.fill(name, words, cls.hidden)}")
        calibration.save(path, overwrite=False)
        file = saving.describe_file(path, folders.CALIBRATIONS)
        ui = show_files([file], calibration.warnings(), text="\n".join(calibration.facts()))
        return io.NodeOutput(str(path), ui=ui)


class LoadCalibration(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingLoadCalibration",
            display_name="Load Calibration",
            category=CATEGORY,
            description="Loads a calibration that Save Calibration has written. Use it with the model that it was "
            "recorded with; for any other model it is refused.",
            search_aliases=["import calibration"],
            inputs=[
                io.Combo.Input(
                    "file", options=folders.list_calibrations(), tooltip=f"A file in output/{folders.CALIBRATIONS}."
                )
            ],
            outputs=calibration_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> Any:
        stat = folders.find_calibration(file).stat() if file else None
        return stat and (stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        calibration = Calibration.load(folders.find_calibration(file))
        return to_node_output(calibration, show_calibration(calibration))
