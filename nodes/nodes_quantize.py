"""The nodes that quantize a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from comfy_api.latest import io

from ..quant.calibration.calibration import Calibration
from ..quant.planning.builder import make_plan
from ..quant.planning.machine import leave_out_unusable
from ..quant.reports.markdown import to_markdown
from .host.machine import describe_machine
from .page import live
from .page.shown import show_report
from .pipeline.loaded import Loaded, load_clip, load_model
from .pipeline.quantize import quantize_weights
from .recipe.inputs import calibration_link, recipe_inputs, recipe_link
from .recipe.values import choose_recipe, make_recipe, note_unused
from .schema import CATEGORY, SEARCH_WORDS, device_input, merge_input, report_output


class QuantizeModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingQuantizeModel",
            display_name="Quantize Model",
            category=CATEGORY,
            description="Quantizes a diffusion model to FP8 or INT8. The result runs immediately and can be saved; the "
            "loaded model is not changed. LoRAs and other patches of the input are kept as patches, or merged first.",
            search_aliases=[*SEARCH_WORDS],
            inputs=[
                io.Model.Input("model", tooltip="A diffusion model in 16 or 32 bits."),
                *recipe_inputs(
                    "diffusion",
                    then=(device_input(), recipe_link(), calibration_link(), merge_input()),
                    recommends=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The quantized model."), report_output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        device: str = "auto",
        calibration: Calibration | None = None,
        merge_loras: bool = False,
        **values: Any,
    ) -> io.NodeOutput:
        load = partial(load_model, model, calibration, merge_loras)
        return _quantize(load, values, device, calibration, cls.hidden.unique_id)


class QuantizeTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingQuantizeTextEncoder",
            display_name="Quantize Text Encoder",
            category=CATEGORY,
            description="Quantizes a T5-XXL or llama-style text encoder. Other encoders are refused, because ComfyUI "
            "does not run them quantized; beside an encoder that it does run, as in Flux, they are kept unchanged.",
            search_aliases=["quantize clip", "quantize t5", "text encoder", *SEARCH_WORDS],
            inputs=[
                io.Clip.Input("clip", tooltip="A text encoder in 16 or 32 bits."),
                *recipe_inputs(
                    "text_encoder",
                    then=(device_input(), recipe_link(), calibration_link(), merge_input()),
                    recommends=True,
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The quantized text encoder."), report_output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        device: str = "auto",
        calibration: Calibration | None = None,
        merge_loras: bool = False,
        **values: Any,
    ) -> io.NodeOutput:
        load = partial(load_clip, clip, calibration, merge_loras)
        return _quantize(load, values, device, calibration, cls.hidden.unique_id)


def _quantize(
    load: Callable[[], Loaded],
    values: Mapping[str, Any],
    device: str,
    calibration: Calibration | None,
    node_id: str | None,
) -> io.NodeOutput:
    live.begin(node_id)
    make_recipe(values)  # refuses bad settings before the model is read
    loaded, machine = load(), describe_machine()
    recipe, reasons = choose_recipe(values, partial(make_plan, loaded.largest.weights.tensors), machine, calibration)
    recipe, left_out = leave_out_unusable(recipe, machine, weight_only=loaded.weight_only)
    results = {
        name: quantize_weights(part.weights, loaded.stamp, recipe, device, node_id, part.calibration)
        for name, part in loaded.parts.items()
    }
    quantized, report = loaded.finish(results, recipe)
    from_disk = all(result.from_disk for result in results.values())
    notices = [*reasons, *left_out, *note_unused(recipe, calibrated=calibration is not None)]
    ui = show_report(report, notices, from_disk=from_disk)
    return io.NodeOutput(quantized, to_markdown(report), ui=ui)
