"""The node that quantizes a model and its text encoder to one size together."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..quant import Recipe
from ..quant.calibration.calibration import Calibration
from ..quant.planning.size_curve import GIGABYTE
from ..quant.reports.markdown import to_markdown
from ..quant.reports.report import merge_reports
from .page.shown import show_report
from .pipeline.joint import JointPart, quantize_together
from .pipeline.loaded import Part, load_clip, load_model
from .recipe.inputs import QuantCalibration, recipe_link
from .recipe.values import choose_joint_recipe
from .schema import CATEGORY, SEARCH_WORDS, device_input, merge_input, report_output


class QuantizeToSize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingQuantizeToSize",
            display_name="Quantize to a Size",
            category=CATEGORY,
            description="Quantizes a diffusion model and its text encoder so that both together fit a size. Every "
            "layer is measured in each format; the size is split where it costs least.",
            search_aliases=["fit vram", "target size", "gigabytes", "mixed precision", "auto", *SEARCH_WORDS],
            inputs=[
                io.Model.Input("model", tooltip="A diffusion model in 16 or 32 bits."),
                io.Clip.Input("clip", tooltip="Its text encoder in 16 or 32 bits."),
                io.Float.Input(
                    "gigabytes",
                    default=12.0,
                    min=0.001,
                    max=1000.0,
                    step=0.1,
                    round=0.0001,
                    tooltip="Largest size of both together in gigabytes (10^9 bytes).",
                ),
                QuantCalibration.Input(
                    "model_calibration",
                    optional=True,
                    tooltip="Recorded inputs of the model's layers, for calibrated rounding and output errors.",
                ),
                QuantCalibration.Input(
                    "clip_calibration",
                    optional=True,
                    tooltip="The same of the text encoder, from Calibrate Text Encoder.",
                ),
                recipe_link(),
                device_input(),
                merge_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="The quantized model."),
                io.Clip.Output(tooltip="The quantized text encoder."),
                report_output(),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        gigabytes: float,
        model_calibration: Calibration | None = None,
        clip_calibration: Calibration | None = None,
        recipe: Recipe | None = None,
        device: str = "auto",
        merge_loras: bool = False,
    ) -> io.NodeOutput:
        loaded = {
            "model": load_model(model, model_calibration, merge_loras),
            "text_encoder": load_clip(clip, clip_calibration, merge_loras),
        }

        def choose(part: Part) -> Recipe:
            return choose_joint_recipe(recipe, calibrated=part.calibration is not None)

        parts = [
            JointPart(source=name, name=part_name, part=part, recipe=choose(part))
            for name, source in loaded.items()
            for part_name, part in source.parts.items()
        ]
        nbytes = round(gigabytes * GIGABYTE) - sum(source.other_bytes for source in loaded.values())
        joint = quantize_together(loaded, parts, nbytes, device, cls.hidden.unique_id)
        outputs, reports = {}, {}
        for name, source in loaded.items():
            outputs[name], reports[name] = source.finish(joint.results[name], joint.recipes[name])
        report = merge_reports(reports)
        report.precision = joint.curve
        ui = show_report(report, joint.notices, from_disk=joint.from_disk)
        return io.NodeOutput(*outputs.values(), to_markdown(report), ui=ui)
