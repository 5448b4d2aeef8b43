"""The nodes that write files: saving quantized models, and quantizing a file without loading the model."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ..quant import QuantError, quantize_file
from ..quant.calibration.calibration import Calibration
from ..quant.files import open_checkpoint
from ..quant.layer.memory import largest_peak
from ..quant.notices import Notice
from ..quant.reports.markdown import to_markdown
from .host import folders, running
from .host.encoders import find_quantized_parts
from .host.origin import PREFIX, read_kept_dtypes, read_provenance, read_source_metadata
from .page import live
from .page.shown import show_files, show_report
from .pipeline import saving
from .recipe.inputs import calibration_link, recipe_inputs, recipe_link
from .recipe.values import make_recipe, unused_note
from .schema import CATEGORY, SEARCH_WORDS, device_input, report_output

CHECKPOINT_PREFIX = "model.diffusion_model."


def _prefix_input(default: str) -> io.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Name in the output folder; a number is added. Keep its folder, so that the loaders list the file.",
    )


def _name_input() -> io.Input:
    return io.String.Input(
        "name",
        default="quantized",
        tooltip="Name of the new file, in the output folder that the loaders list; a number is added.",
    )


class SaveQuantizedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingSaveModel",
            display_name="Save Quantized Model",
            category=CATEGORY,
            description="Writes a quantized diffusion model for Load Diffusion Model. LoRAs on it are merged into the "
            "file: ComfyUI then rounds the changed layers to nearest.",
            search_aliases=["save model", "export quantized", "save fp8", "save int8"],
            inputs=[
                io.Model.Input("model", tooltip="A quantized diffusion model."),
                _prefix_input("diffusion_models/quantized"),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, filename_prefix: str) -> io.NodeOutput:
        path = folders.choose_output_path(filename_prefix)
        comfy.model_management.load_models_gpu([model])
        tensors = {key.removeprefix(CHECKPOINT_PREFIX): t for key, t in model.state_dict_for_saving().items()}
        dtypes = {key.removeprefix(PREFIX): dtype for key, dtype in read_kept_dtypes(model).items()}
        metadata = saving.make_header(tensors, read_provenance(model), read_source_metadata(model), len(model.patches))
        workflow = saving.workflow_fields(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        saving.write_tensors(path, tensors, metadata | workflow, dtypes)
        notices = saving.loading_notices(path, "diffusion_models", metadata)
        return io.NodeOutput(str(path), ui=show_files([str(path)], notices))


class SaveQuantizedTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingSaveTextEncoder",
            display_name="Save Quantized Text Encoder",
            category=CATEGORY,
            description="Writes a quantized text encoder for Load CLIP. If there are several encoders, only the "
            "quantized ones are written, each to its own file. LoRAs on it are merged into the file.",
            search_aliases=["save clip", "save t5", "export quantized text encoder"],
            inputs=[
                io.Clip.Input("clip", tooltip="A quantized text encoder."),
                _prefix_input("clip/quantized"),
            ],
            outputs=[io.String.Output("path", tooltip="The files that were written, one per line.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, clip: Any, filename_prefix: str) -> io.NodeOutput:
        provenance, source = read_provenance(clip.patcher), read_source_metadata(clip.patcher)
        parts = find_quantized_parts(clip)
        if not parts:
            raise QuantError("Nothing in this text encoder is quantized; connect the output of a quantize node.")
        clip.load_model()
        tensors, dtypes = clip.patcher.model_state_dict_for_saving(), read_kept_dtypes(clip.patcher)
        workflow = saving.workflow_fields(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        written, notices = list[str](), list[Notice]()
        for part in parts:
            path = folders.choose_output_path(filename_prefix if len(parts) == 1 else f"{filename_prefix}_{part.name}")
            own = {key.removeprefix(part.prefix): t for key, t in tensors.items() if key.startswith(part.prefix)}
            own |= clip.tokenizer.state_dict()
            metadata = saving.make_header(own, provenance, source, len(clip.patcher.patches))
            kept = {key.removeprefix(part.prefix): d for key, d in dtypes.items() if key.startswith(part.prefix)}
            saving.write_tensors(path, own, metadata | workflow, kept)
            written.append(str(path))
            notices = saving.loading_notices(path, "text_encoders", metadata)
        return io.NodeOutput("\n".join(written), ui=show_files(written, notices))


class QuantizeFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingQuantizeFile",
            display_name="Quantize File",
            category=CATEGORY,
            description="Quantizes a model file into another one, layer by layer, without loading the model: for "
            "models larger than memory.",
            search_aliases=["quantize checkpoint", "convert model", *SEARCH_WORDS],
            inputs=[
                io.Combo.Input("file", options=folders.list_model_files(), tooltip="The model file in 16 or 32 bits."),
                *recipe_inputs(then=(_name_input(), device_input(), recipe_link(), calibration_link())),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written."), report_output()],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: Any) -> Any:
        stat = os.stat(folders.find_model(file)[1]) if file else None
        return stat and (stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(
        cls, file: str, name: str, device: str = "auto", calibration: Calibration | None = None, **values: Any
    ) -> io.NodeOutput:
        recipe = make_recipe(values)
        kind, source = folders.find_model(file)
        target = folders.choose_output_path(f"{folders.OUTPUT_NAMES.get(kind, kind)}/{name}")
        devices = running.choose_devices(device)
        with open_checkpoint(source) as checkpoint:
            running.make_room(devices, largest_peak(checkpoint.tensors, recipe, calibration or {}))
        report = running.run_engine(
            lambda progress, cancel: quantize_file(
                source,
                target,
                recipe,
                device=devices,
                statistics=calibration,
                overwrite=False,
                progress=progress,
                cancel=cancel,
            ),
            cls.hidden.unique_id,
            live.begin(cls.hidden.unique_id),
        )
        ui = show_report(report, unused_note(recipe, calibration), file=str(target))
        return io.NodeOutput(str(target), to_markdown(report), ui=ui)
