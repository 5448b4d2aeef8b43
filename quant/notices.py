"""Notices: what the user should know beside a result, as data that every front end words in its own language.

The command line and text reports render the English templates below. The page renders the same notices from
``locales/<language>/main.json``, key ``notice_<kind>``; tests hold its English to this table. What stops a run is an
exception and no notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from string import Formatter
from typing import Any, Literal, get_args

Level = Literal["info", "warning", "error"]
LEVELS = get_args(Level)
Value = str | int | float | list[str]
"""Value of a template's field; a list is joined with commas."""


@dataclass(frozen=True)
class Notice:
    """Made by `notice`, which checks the kind and its values."""

    kind: str
    """A key of `TEMPLATES`."""
    level: Level
    """error: the run would fail. warning: the result is not what was asked for. info: what was decided."""
    values: Mapping[str, Value]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Notice:
        """Read what `to_dict` wrote; KeyError, TypeError or ValueError for anything else."""
        if data["level"] not in LEVELS:
            raise ValueError(f"There is no level {data['level']!r}.")
        return notice(data["kind"], data["level"], **data["values"])


TEMPLATES: Mapping[str, tuple[Level, str]] = {
    # The plan of one layer.
    "smaller_rotation": ("info", "rotated in groups of {group}: {inputs} inputs do not divide by {limit}"),
    "not_rotated": ("info", "not rotated: {inputs} inputs do not divide by {smallest}"),
    "padded": ("info", "padded to {rows} x {columns}"),
    "format_fallback": ("info", "fell back from {format}"),
    "shape_misfit": ("info", "{rows} x {columns} does not divide by {multiple}, as {format} needs"),
    "no_lookup": ("info", "ComfyUI cannot look up embedding rows in {format}"),
    "rotation_chosen": ("info", "rotation chosen: {candidate}"),
    "format_chosen": ("info", "chosen for the target, of {candidates}"),
    "format_closest": ("info", "the closest of {candidates}"),
    "upgraded": ("info", "upgraded: {format} exceeds a weight error of {limit}"),
    # The rounding of one layer.
    "nearest_without_inputs": ("warning", "rounded to nearest: no inputs were recorded"),
    "nearest_few_rows": ("info", "rounded to nearest: {rows} calibration rows, and {needed} are needed"),
    "directions_few_rows": (
        "info",
        "learned from the weight's own directions: {rows} calibration rows, and {needed} are needed",
    ),
    "directions_of_weight": ("warning", "learned from the weight's own directions: no inputs were recorded"),
    "scale_chosen": ("info", "scale: {scale}"),
    "rows_kept_nearest": ("info", "{nearest} of {rows} rows kept nearest"),
    "fell_back": ("info", "fell back to nearest"),
    "computed_on_cpu": ("info", "computed on the CPU: it does not fit in the memory of {device}"),
    "patched": ("info", "a LoRA or another patch on it: ComfyUI rounds it again"),
    "output_error_overflow": ("warning", "output error unknown: it overflows float32"),
    # A run.
    "forced": ("warning", "Forced, although ComfyUI will not load the result. {reason}"),
    "not_known": ("warning", "ComfyUI may not load the result: it is no model that ComfyUI is known to load."),
    "needs_pack": ("warning", "ComfyUI loads {formats} only while calibrated-rounding is installed."),
    "converted": (
        "warning",
        "The source holds INT8 weights: {layers} layers were converted. Their errors are measured against these "
        "weights; INT8's own error comes on top.",
    ),
    "needs_version": ("info", "Files in {format} need {needs}."),
    "not_recognised": ("info", "The model is not recognised: general rules decide which layers stay in float."),
    "no_input_scale": (
        "info",
        "No input scale was written for {layers} layers: none was measured, or the format takes none.",
    ),
    "sensitivities_unused": ("warning", "Sensitivities were not used: {layers} layers have none."),
    "no_bias_corrected": ("warning", "No bias was corrected: no input means were measured."),
    "layers_unrecorded": (
        "warning",
        "Quantized without recorded inputs: {layers}. These layers did not run during the recording, or their inputs "
        "were not finite.",
    ),
    "calibration_thin": (
        "warning",
        "The calibration is too thin: {layers} of {total} layers have fewer than {needed} rows ({rows} at the fewest), "
        "so they are treated as if nothing was recorded. Calibrate with more prompts, steps or runs.",
    ),
    "patches_merged": ("info", "LoRAs and other patches of {weights} weights were merged before quantizing."),
    "patches_requantize": (
        "warning",
        "LoRAs or other patches stay on {count} quantized layers: {layers}. ComfyUI rounds these layers again when it "
        "applies them, without calibration; merge_loras merges them before quantizing.",
    ),
    "not_kept_on_disk": ("warning", "The result was not kept on disk: {reason}"),
    "candidates_unknown": ("warning", "Left out of auto: {formats}. This ComfyUI does not load these formats."),
    "candidates_emulated": ("info", "Left out of auto: {formats}. The device does not multiply in these formats."),
    "from_disk": ("info", "Taken from the results kept on disk; nothing was rounded."),
    # A recommendation.
    "recommended_fits": (
        "info",
        "Recommended: {format}, {rounding}. It is the closest format that leaves a fifth of {memory} free.",
    ),
    "recommended_too_large": (
        "warning",
        "Recommended: {format}, {rounding}. No format leaves a fifth of {memory} free, so parts of the model may "
        "stay in the computer's memory.",
    ),
    "recommended_small": (
        "info",
        "Recommended: {format}, {rounding}. It is the closest format of about 4 bits a weight.",
    ),
    "recommended_best": ("info", "Recommended: {format}, {rounding}. It is the closest format of all."),
    "recommended_layers": (
        "info",
        "Recommended: auto with {format}, {rounding}. The most sensitive layers stay in float, at the same size.",
    ),
    "recommended_later": ("info", "The format is chosen during the run: the model is not known before."),
    "float_fits": ("info", "Without quantization the model takes {size} of {memory}, so it fits as it is."),
    "calibration_helps": (
        "info",
        "A calibration brings it closer: {calibrated} dB, not {nearest} dB, on the shipped model.",
    ),
    "fp8_less_close": (
        "info",
        "FP8 also rounds inputs on this card: {fp8} dB on the shipped model, {format} {closeness} dB.",
    ),
    # A file.
    "is_calibration": ("info", "This is a calibration, for Load Calibration. {text}"),
    "not_quantized": ("info", "No layer is quantized."),
    "format_unknown_here": ("warning", "This ComfyUI does not know {format} and cannot load the file."),
    "saves_memory_here": ("info", "{format}: only saves memory here (ComfyUI computes in 16 or 32 bits)."),
    "runs_here": ("info", "{format}: runs in {bits} bits here."),
    "encoder_saves_memory_here": (
        "info",
        "Text encoder, all formats: only saves memory here (ComfyUI computes in 16 or 32 bits).",
    ),
    "loads_here": ("info", "ComfyUI loads {format}. Whether this machine computes in it is not known."),
    "not_in_folder": (
        "warning",
        "In none of ComfyUI's model folders: to load the file, copy it into models/{folder} and press R.",
    ),
    "not_in_any_folder": (
        "warning",
        "In none of ComfyUI's model folders: to load the file, copy it into the one of its kind and press R.",
    ),
    "dropped_calibration": (
        "info",
        "{file} is a calibration: copy it into output/calibrations and press R, and Load Calibration takes it.",
    ),
    "scales_not_read": (
        "info",
        "Large scales of {layers} layers were not checked, as the file is in no model folder.",
    ),
    "obstacle": ("warning", "{text}"),
    "more_obstacles": ("warning", "{count} more obstacles; the report lists them."),
    # A comparison of sampled latents.
    "compare_identical": ("info", "Identical: nothing differs."),
    "compare_very_close": ("info", "Very close ({psnr} dB): a typical difference is {share} of the latents' range."),
    "compare_close": ("info", "Close ({psnr} dB): a typical difference is {share} of the latents' range."),
    "compare_details": (
        "info",
        "Different in details ({psnr} dB): a typical difference is {share} of the latents' range. Look at the picture.",
    ),
    "compare_other": (
        "info",
        "Another picture ({psnr} dB): a typical difference is {share} of the latents' range. Another one is "
        "not a worse one: look at the picture.",
    ),
    # A comparison of several candidates.
    "compare_each_identical": ("info", "'{candidate}' is identical: nothing differs."),
    "compare_each_very_close": ("info", "'{candidate}' is very close ({psnr} dB)."),
    "compare_each_close": ("info", "'{candidate}' is close ({psnr} dB)."),
    "compare_each_details": ("info", "'{candidate}' differs in details ({psnr} dB)."),
    "compare_each_other": ("info", "'{candidate}' makes another picture ({psnr} dB); another one is not a worse one."),
    "compare_take_best": ("info", "Take '{candidate}': it is the closest, and none is clearly smaller."),
    "compare_take_alike": (
        "info",
        "Take '{candidate}': none is clearly smaller, and over these seeds it is not surely further off than "
        "'{closest}', the closest.",
    ),
    "compare_take_closest": (
        "info",
        "Take '{candidate}' if it fits: over these seeds none is surely closer. '{smallest}' is the smallest: {share} "
        "smaller, {distance} dB further off.",
    ),
    "compare_fastest": ("info", "'{candidate}' was the fastest here: {seconds} s a step."),
    # Settings.
    "pattern_unmatched": ("warning", "{setting}: {pattern} matches no layer of this model, so it has no effect."),
    "needs_calibration": ("warning", "{option} has no effect without a calibration."),
    "calibration_only_measures": (
        "info",
        "The calibration only measures the error: {rounding} rounding learns nothing from it.",
    ),
    "block_size_unused": ("warning", "--block-size has no effect: {format} has no blocks of a size to choose."),
    "option_unused": ("warning", "{option} has no effect: {setting} is {value}."),
    "rotation_group_unused": ("warning", "{option} has no effect: no chosen format is rotated."),
    "no_calibration": ("error", "Calibrated rounding needs a calibration: link one to the calibration input."),
    "inputs_rounded": (
        "info",
        "{device} computes {format} in 8 bits, so inputs are rounded as well: int8_convrot, or "
        "full_precision_matrix_mult, stays closer.",
    ),
    "not_listed": ("warning", "ComfyUI's loaders do not list this folder; begin the name with '{folder}/'."),
    "refused": ("error", "{text}"),
}
"""The level and the English text of every kind. Texts of a layer are cells of a table; the others are sentences."""


def notice(kind: str, level: Level | None = None, **values: Value) -> Notice:
    """A notice of a kind of `TEMPLATES`, of the kind's own level by default.

    Raises:
        KeyError: the kind is unknown.
        ValueError: the values are not the ones of the template.
    """
    own_level, template = TEMPLATES[kind]
    names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if names != values.keys():
        raise ValueError(f"The notice '{kind}' needs {sorted(names)}, not {sorted(values)}.")
    return Notice(kind, level or own_level, values)


def render(notice: Notice) -> str:
    """The notice in English."""
    words = {name: ", ".join(value) if isinstance(value, list) else value for name, value in notice.values.items()}
    return TEMPLATES[notice.kind][1].format(**words)


def render_all(notices: Iterable[Notice]) -> list[str]:
    return [render(entry) for entry in notices]
