"""The nodes that quantize a loaded model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..quant.calibration.calibration import Calibration
from ..quant.reports.provenance import Provenance
from ..quant.reports.report import merge_reports
from .host.bindings import refuse_bound
from .host.compiled import refuse_float_copies
from .host.encoders import find_runnable_parts, read_part_tensors, rebuild_clip
from .host.encoding import select_part
from .host.origin import read_diffusion_tensors, read_origin, read_source_dtypes, stamp_source
from .host.rebuilding import rebuild_model
from .host.weights import LoadedWeights
from .page.shown import show_report
from .pipeline.quantize import Result, quantize_weights
from .recipe.inputs import calibration_link, recipe_inputs, recipe_link
from .recipe.values import make_recipe, unused_note
from .schema import CATEGORY, SEARCH_WORDS, device_input, report_output


class QuantizeModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingQuantizeModel",
            display_name="Quantize Model",
            category=CATEGORY,
            description="Quantizes a diffusion model to FP8 or INT8. The result runs immediately and can be saved; the "
            "loaded model is not changed. LoRAs and other patches of the input are kept as patches.",
            search_aliases=[*SEARCH_WORDS],
            inputs=[
                io.Model.Input("model", tooltip="A diffusion model in 16 or 32 bits."),
                *recipe_inputs("diffusion", then=(device_input(), recipe_link(), calibration_link())),
            ],
            outputs=[io.Model.Output(tooltip="The quantized model."), report_output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, model: Any, device: str = "auto", calibration: Calibration | None = None, **values: Any
    ) -> io.NodeOutput:
        refuse_float_copies(model)
        refuse_bound(model)
        recipe = make_recipe(values)
        weights = LoadedWeights(read_diffusion_tensors(read_origin(model)), read_source_dtypes(model))
        result = quantize_weights(weights, stamp_source(model), recipe, device, cls.hidden.unique_id, calibration)
        quantized = rebuild_model(model, result.tensors, Provenance(recipe=recipe.to_dict()))
        ui = show_report(result.report, unused_note(recipe, calibration), from_disk=result.from_disk)
        return io.NodeOutput(quantized, result.report.table(), ui=ui)


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
                *recipe_inputs("text_encoder", then=(device_input(), recipe_link(), calibration_link())),
            ],
            outputs=[io.Clip.Output(tooltip="The quantized text encoder."), report_output()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls, clip: Any, device: str = "auto", calibration: Calibration | None = None, **values: Any
    ) -> io.NodeOutput:
        recipe = make_recipe(values)
        parts = find_runnable_parts(clip)
        refuse_bound(clip.patcher)
        stamp, dtypes, results = stamp_source(clip.patcher), read_source_dtypes(clip.patcher), dict[str, Result]()
        for part in parts:
            weights = LoadedWeights(read_part_tensors(clip, part), dtypes)
            share = calibration and select_part(calibration, part)
            results[part.name] = quantize_weights(weights, stamp, recipe, device, cls.hidden.unique_id, share)
        report = merge_reports({name: result.report for name, result in results.items()})
        tensors = {name: result.tensors for name, result in results.items()}
        kinds = {part.name: part.kind for part in parts}
        quantized = rebuild_clip(clip, tensors, kinds, Provenance(recipe=recipe.to_dict()))
        from_disk = all(result.from_disk for result in results.values())
        ui = show_report(report, unused_note(recipe, calibration), from_disk=from_disk)
        return io.NodeOutput(quantized, report.table(), ui=ui)
