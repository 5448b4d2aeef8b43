"""The nodes that quantize a loaded model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..quant import Recipe
from ..quant.calibration.calibration import Calibration
from ..quant.notices import Notice
from ..quant.planning.builder import make_plan
from ..quant.reports.markdown import to_markdown
from ..quant.reports.provenance import Provenance
from ..quant.reports.report import merge_reports
from .host.bindings import refuse_bound
from .host.compiled import refuse_float_copies
from .host.encoders import Part, find_runnable_parts, read_part_tensors, rebuild_clip
from .host.encoding import part_prefixes, select_part
from .host.machine import describe_machine
from .host.merging import WeightPatches, drop_patches, find_patches, merge_on_read, refuse_other_patches
from .host.origin import PREFIX, read_diffusion_tensors, read_origin, read_source_dtypes, stamp_source
from .host.rebuilding import rebuild_model
from .host.weights import LoadedWeights
from .page import live
from .page.shown import show_report
from .pipeline.patch_notes import describe_merged, note_patches
from .pipeline.quantize import Result, quantize_weights
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
        live.begin(cls.hidden.unique_id)
        refuse_float_copies(model)
        refuse_bound(model)
        make_recipe(values)  # refuses bad settings before the model is read
        tensors = read_diffusion_tensors(read_origin(model))
        patches = find_patches(model, tensors, PREFIX)
        merged = patches if merge_loras else {}
        refuse_other_patches(calibration, merged)
        weights = merge_on_read(tensors, read_source_dtypes(model), merged)
        recipe, reasons = _choose_recipe(values, weights, calibration)
        result = quantize_weights(weights, stamp_source(model), recipe, device, cls.hidden.unique_id, calibration)
        provenance = Provenance(recipe=recipe.to_dict(), merged_first=describe_merged(merged))
        rest = drop_patches(model, (patched.key for patched in merged.values()))
        quantized = rebuild_model(rest, result.tensors, provenance)
        note_patches(result.report, patches, recipe, merged=merge_loras)
        notices = [*reasons, *note_unused(recipe, calibrated=calibration is not None)]
        ui = show_report(result.report, notices, from_disk=result.from_disk)
        return io.NodeOutput(quantized, to_markdown(result.report), ui=ui)


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
        live.begin(cls.hidden.unique_id)
        make_recipe(values)  # refuses bad settings before the model is read
        parts = find_runnable_parts(clip)
        refuse_bound(clip.patcher)
        stamp, dtypes, results = stamp_source(clip.patcher), read_source_dtypes(clip.patcher), dict[str, Result]()
        patches = dict[str, WeightPatches]()
        recipe, reasons = _choose_recipe(values, _largest_part(clip, parts, dtypes), calibration)
        for part, prefix in part_prefixes(parts).items():
            tensors = read_part_tensors(clip, part)
            found = find_patches(clip.patcher, tensors, part.prefix)
            merged = found if merge_loras else {}
            share = calibration and select_part(calibration, part)
            refuse_other_patches(share, merged)
            weights = merge_on_read(tensors, dtypes, merged)
            results[part.name] = quantize_weights(weights, stamp, recipe, device, cls.hidden.unique_id, share)
            patches |= {prefix + name: patched for name, patched in found.items()}
        report = merge_reports({name: result.report for name, result in results.items()})
        note_patches(report, patches, recipe, merged=merge_loras)
        merged = patches if merge_loras else {}
        kinds = {part.name: part.kind for part in parts}
        rest = clip.clone()
        rest.patcher = drop_patches(clip.patcher, (patched.key for patched in merged.values()))
        quantized = rebuild_clip(
            rest,
            {name: result.tensors for name, result in results.items()},
            kinds,
            Provenance(recipe=recipe.to_dict(), merged_first=describe_merged(merged)),
        )
        from_disk = all(result.from_disk for result in results.values())
        notices = [*reasons, *note_unused(recipe, calibrated=calibration is not None)]
        ui = show_report(report, notices, from_disk=from_disk)
        return io.NodeOutput(quantized, to_markdown(report), ui=ui)


def _choose_recipe(
    values: Mapping[str, Any], weights: LoadedWeights, calibration: Calibration | None
) -> tuple[Recipe, list[Notice]]:
    return choose_recipe(values, lambda recipe: make_plan(weights.tensors, recipe), describe_machine(), calibration)


def _largest_part(clip: Any, parts: Iterable[Part], dtypes: Mapping[str, torch.dtype]) -> LoadedWeights:
    """The weights that decide a recommendation for all encoders."""
    every = (LoadedWeights(read_part_tensors(clip, part), dtypes) for part in parts)
    return max(every, key=lambda weights: sum(spec.nbytes for spec in weights.tensors.values()))
