"""The nodes that write files: saving quantized models, and quantizing a file without loading the model."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ..quant import QuantError, plan_file, quantize_file
from ..quant.calibration.calibration import Calibration
from ..quant.files import open_checkpoint
from ..quant.layer.memory import largest_peak
from ..quant.notices import Notice
from ..quant.reports.markdown import to_markdown
from .host import folders, running
from .host.encoders import find_quantized_parts
from .host.machine import describe_machine
from .host.origin import PREFIX, read_kept_dtypes, read_provenance, read_source_metadata
from .page import durations, live
from .page.saved import SavedFile
from .page.shown import show_files, show_report
from .pipeline import saving
from .pipeline.naming import DEFAULT_NAME, check_name, describe_tokens, make_words, name_model
from .pipeline.quantize import layer_folder
from .recipe.inputs import calibration_link, recipe_inputs, recipe_link
from .recipe.layout import NONE
from .recipe.values import choose_recipe, note_unused
from .schema import CATEGORY, SEARCH_WORDS, device_input, report_output

CHECKPOINT_PREFIX = "model.diffusion_model."


def _prefix_input(default: str) -> io.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Name in the output folder; a number is added. Keep its folder, so that the loaders list the file. "
        + describe_tokens(),
    )


def _name_input() -> io.Input:
    return io.String.Input(
        "name",
        default=DEFAULT_NAME,
        tooltip="Name of the new file, in the output folder that the loaders list; a number is added. "
        + describe_tokens(),
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
                _prefix_input(f"diffusion_models/{DEFAULT_NAME}"),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return check_name(filename_prefix)

    @classmethod
    def execute(cls, model: Any, filename_prefix: str) -> io.NodeOutput:
        words = saving.find_words(model, cls.hidden)
        path = folders.choose_output_path(saving.fill(filename_prefix, words, cls.hidden))
        comfy.model_management.load_models_gpu([model])
        tensors = {key.removeprefix(CHECKPOINT_PREFIX): t for key, t in model.state_dict_for_saving().items()}
        dtypes = {key.removeprefix(PREFIX): dtype for key, dtype in read_kept_dtypes(model).items()}
        metadata = saving.make_header(tensors, read_provenance(model), read_source_metadata(model), len(model.patches))
        workflow = saving.workflow_fields(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        saving.write_tensors(path, tensors, metadata | workflow, dtypes)
        notices = saving.loading_notices(path, "diffusion_models", metadata)
        file = saving.describe_file(path, "diffusion_models", saving.list_formats(tensors))
        return io.NodeOutput(str(path), ui=show_files([file], notices))


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
                _prefix_input(f"clip/{DEFAULT_NAME}"),
            ],
            outputs=[io.String.Output("path", tooltip="The files that were written, one per line.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return check_name(filename_prefix)

    @classmethod
    def execute(cls, clip: Any, filename_prefix: str) -> io.NodeOutput:
        source = read_source_metadata(clip.patcher)
        parts = find_quantized_parts(clip)
        if not parts:
            raise QuantError("Nothing in this text encoder is quantized; connect the output of a quantize node.")
        clip.load_model()
        tensors, dtypes = clip.patcher.model_state_dict_for_saving(), read_kept_dtypes(clip.patcher)
        workflow = saving.workflow_fields(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        words = saving.find_words(clip.patcher, cls.hidden, parts[0].name if len(parts) == 1 else "text_encoders")
        name = saving.fill(filename_prefix, words, cls.hidden)
        written, notices = list[SavedFile](), list[Notice]()
        for part in parts:
            path = folders.choose_output_path(name if len(parts) == 1 else f"{name}_{part.name}")
            own = {key.removeprefix(part.prefix): t for key, t in tensors.items() if key.startswith(part.prefix)}
            own |= clip.tokenizer.state_dict()
            provenance = read_provenance(clip.patcher, part.name)
            metadata = saving.make_header(own, provenance, source, len(clip.patcher.patches))
            kept = {key.removeprefix(part.prefix): d for key, d in dtypes.items() if key.startswith(part.prefix)}
            saving.write_tensors(path, own, metadata | workflow, kept)
            written.append(saving.describe_file(path, "text_encoders"))
            notices = saving.loading_notices(path, "text_encoders", metadata)
        return io.NodeOutput("\n".join(file.path for file in written), ui=show_files(written, notices))


class QuantizeFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CalibratedRoundingQuantizeFile",
            display_name="Quantize",
            category=CATEGORY,
            description="Quantizes a model file into a file that ComfyUI's own loaders take: pick a file and run. The "
            "model is not loaded but read layer by layer, so that it may be larger than the memory.",
            search_aliases=["quantize checkpoint", "convert model", *SEARCH_WORDS],
            inputs=[
                io.Combo.Input("file", options=folders.list_model_files(), tooltip="The model file in 16 or 32 bits."),
                *recipe_inputs(
                    then=(_name_input(), device_input(), recipe_link(), calibration_link(), _calibration_file_input()),
                    recommends=True,
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The file that was written."), report_output()],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, calibration_file: str = NONE, **_: Any) -> Any:
        paths = [folders.find_model(file)[1]] if file else []
        paths += [str(folders.find_calibration(calibration_file))] if calibration_file != NONE else []
        return [(stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, paths)]

    @classmethod
    def execute(
        cls,
        file: str,
        name: str,
        device: str = "auto",
        calibration: Calibration | None = None,
        calibration_file: str = NONE,
        **values: Any,
    ) -> io.NodeOutput:
        live.begin(cls.hidden.unique_id)
        kind, source = folders.find_model(file)
        calibration = _load_calibration(calibration, calibration_file)
        recipe, reasons = choose_recipe(values, lambda tried: plan_file(source, tried), describe_machine(), calibration)
        name = saving.fill(name, make_words(name_model(file), recipe.to_dict()), cls.hidden)
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
                resume=layer_folder(),
                progress=progress,
                cancel=cancel,
            ),
            cls.hidden.unique_id,
            live.begin(cls.hidden.unique_id),
        )
        durations.remember(recipe, devices, [layer.shape for layer in report.layers], report.seconds)
        notices = [*reasons, *note_unused(recipe, calibrated=calibration is not None)]
        ui = show_report(report, notices, saved=saving.describe_file(target, kind))
        return io.NodeOutput(str(target), to_markdown(report), ui=ui)


def _calibration_file_input() -> io.Input:
    return io.Combo.Input(
        "calibration_file",
        options=[NONE, *folders.list_calibrations()],
        default=NONE,
        optional=True,
        tooltip=f"A calibration of this model, from output/{folders.CALIBRATIONS}; recommended rounding is then "
        "calibrated.",
    )


def _load_calibration(linked: Calibration | None, name: str) -> Calibration | None:
    """The calibration of a link or a file. Raises QuantError for both."""
    if name == NONE:
        return linked
    if linked is not None:
        raise QuantError(
            f"There are two calibrations: remove the link, or set calibration_file to {NONE} in place of {name}."
        )
    return Calibration.load(folders.find_calibration(name))
