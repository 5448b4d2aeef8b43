"""The inputs that make up a recipe, for every node that takes one."""

from __future__ import annotations

from comfy_api.latest import io

from ...quant import Recipe, SvdSettings
from ...quant.formats import FLOATS, FORMATS
from ...quant.formats.rotation import GROUP_SIZES
from ...quant.planning.profiles import get_profile, profile_names
from ...quant.recipe import AUTO, INPUT_SCALES, METRICS, OPTIMIZERS, SCALES, SOURCE, CalibratedSettings

QuantRecipe = io.Custom("QUANT_RECIPE")
QuantCalibration = io.Custom("QUANT_CALIBRATION")

NONE = "none"
DEFAULT_FORMAT = "int8_convrot"
FEEDBACK = "feedback"
DEFAULTS, SVD, CALIBRATED = Recipe(), SvdSettings(), CalibratedSettings()


def recipe_inputs(*kinds: str) -> list[io.Input]:
    """Inputs for a model of the given kinds of profile (``diffusion``, ``text_encoder``); none given: of any kind."""
    return [_format(), _profile(kinds), _rounding(), *_advanced(), *_measured()]


def recipe_link() -> io.Input:
    return QuantRecipe.Input(
        "recipe", optional=True, tooltip="A recipe from another node. It replaces every quantization setting here."
    )


def calibration_link() -> io.Input:
    return QuantCalibration.Input(
        "calibration",
        optional=True,
        tooltip="From a calibration node: recorded inputs of this model's layers, for calibrated rounding, "
        "bias_correction and input_scale.",
    )


def _format() -> io.Input:
    titles = "\n".join(f"{name}: {fmt.title}" for name, fmt in FORMATS.items())
    # The first option is the default.
    names = sorted(FORMATS, key=lambda name: name != DEFAULT_FORMAT)
    options = [*(io.DynamicCombo.Option(name, []) for name in names), io.DynamicCombo.Option(AUTO, _auto_inputs())]
    return io.DynamicCombo.Input(
        "format",
        options=options,
        tooltip=f"How the weights are stored; {DEFAULT_FORMAT} is a good start.\n{titles}\n"
        f"{AUTO}: for each layer the format of least measured error, within a size or an error; best with a "
        "calibration.",
    )


def _auto_inputs() -> list[io.Input]:
    targets = [io.DynamicCombo.Option(name, [target]) for name, target in _targets().items()]
    return [
        io.String.Input(
            "formats",
            default=", ".join(DEFAULTS.formats),
            tooltip="The formats to choose from, with commas between them.",
        ),
        io.DynamicCombo.Input(
            "target",
            options=[io.DynamicCombo.Option(NONE, []), *targets],
            tooltip="none: every layer in 8 bits. Else layers may also stay as they are, chosen so that the summed "
            "error is least within the size, or the size least within the error.",
        ),
    ]


def _targets() -> dict[str, io.Input]:
    def number(name: str, default: float, most: float, step: float, tooltip: str) -> io.Input:
        return io.Float.Input(name, default=default, min=step, max=most, step=step, round=step / 100, tooltip=tooltip)

    return {
        "share": number("target_share", 0.6, 1.0, 0.01, "Size of the result, as a share of the model's."),
        "gigabytes": number("target_gb", 8.0, 1000.0, 0.1, "Size of the result in 10^9 bytes."),
        "error": number("target_error", 0.005, 1.0, 0.001, "Largest relative error of the layers' outputs, as run."),
    }


def _profile(kinds: tuple[str, ...]) -> io.Input:
    fitting = [name for name in profile_names() if not kinds or get_profile(name).kind in (*kinds, "any")]
    return io.Combo.Input(
        "profile",
        options=[AUTO, *fitting],
        default=AUTO,
        tooltip="Which layers stay in floating point. auto recognises the model; a name that does not describe the "
        "model is refused.",
    )


def _rounding() -> io.Input:
    options = {"nearest": [], "svd": _svd_inputs(), "calibrated": _calibrated_inputs()}
    return io.DynamicCombo.Input(
        "rounding",
        options=[io.DynamicCombo.Option(name, inputs) for name, inputs in options.items()],
        tooltip="nearest: round each weight on its own, in seconds. svd: learn which way to round from the leading "
        "directions of each layer's weight, in minutes; never worse than nearest on those. calibrated: learn it from "
        "recorded inputs, which the calibration input gives; closest to the original.",
    )


def _calibrated_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "damping",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.001,
            round=0.0001,
            advanced=True,
            tooltip="How little the recorded inputs are trusted; 0 finds it from them.",
        ),
        io.Int.Input(
            "passes",
            default=CALIBRATED.passes,
            min=0,
            max=20,
            advanced=True,
            tooltip="Rounds of improving every weight once more, at most: a layer that gains little has no further "
            "one. Each takes about as long as the first rounding.",
        ),
    ]


def _svd_inputs() -> list[io.Input]:
    options = [io.DynamicCombo.Option(name, [] if name == FEEDBACK else _step_inputs()) for name in OPTIMIZERS]
    return [
        io.DynamicCombo.Input(
            "optimizer",
            options=options,
            tooltip="How the roundings are searched. original: adaptive steps. feedback: closed form, fast. prodigy "
            "needs the package prodigy-plus-schedule-free.",
        ),
        io.Float.Input(
            "top_p",
            default=SVD.top_p,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of a weight's directions (its singular vectors) that count, within min_k and max_k.",
        ),
        io.Int.Input("min_k", default=SVD.min_k, min=1, max=8192, tooltip="At least so many directions."),
        io.Int.Input("max_k", default=SVD.max_k, min=1, max=8192, tooltip="At most so many directions."),
        io.Combo.Input(
            "metric",
            options=list(METRICS),
            default=SVD.metric,
            tooltip="Whose directions: the weight's own, or those of recorded inputs (calibration).",
        ),
        io.Boolean.Input("exact_svd", default=SVD.full, tooltip="Exact decomposition: slow, and rarely better."),
        io.Int.Input("random_seed", default=DEFAULTS.seed, min=0, max=2**31 - 1, tooltip="Seed of the decomposition."),
    ]


def _step_inputs() -> list[io.Input]:
    return [
        io.Int.Input("iterations", default=SVD.iterations, min=1, max=10000, tooltip="Steps for each layer."),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.001,
            round=0.000001,
            tooltip="Size of the first step; 0 takes the optimizer's own.",
        ),
    ]


def _advanced() -> list[io.Input]:
    limit = io.Float.Input(
        "max_error", default=0.05, min=0.0001, max=1.0, step=0.001, tooltip="Largest relative weight error of a layer."
    )
    upgrades = [io.DynamicCombo.Option(name, [limit]) for name in FORMATS]
    return [
        io.String.Input(
            "exclude",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="Layers to keep in floating point: regular expressions, one a line.",
        ),
        _choice(
            "scale",
            list(SCALES),
            DEFAULTS.scale,
            "How far apart the values lie that weights are rounded to. absmax: so that the largest weight fits. mse: "
            "for the smallest square error. auto: the better one for each layer, by the error of its output on "
            "recorded inputs.",
        ),
        _choice(
            "rotation_group",
            [*(str(size) for size in sorted(GROUP_SIZES, reverse=True)), AUTO],
            str(DEFAULTS.rotation_group),
            "Largest group of inputs that a rotated format turns together. auto: for each layer the one of least "
            "measured error, or none.",
        ),
        io.String.Input(
            "overrides",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="Formats of single layers: REGEX=FORMAT, one a line, the first match decides.",
        ),
        _choice(
            "fallback",
            [SOURCE, *FORMATS, *FLOATS],
            DEFAULTS.fallback,
            "Format of layers whose shape the chosen one cannot take; source keeps them.",
        ),
        _choice(
            "keep_dtype",
            [SOURCE, *FLOATS],
            DEFAULTS.keep_dtype,
            "Number type of what stays in floating point; source leaves it as it is.",
        ),
        io.DynamicCombo.Input(
            "upgrade",
            options=[io.DynamicCombo.Option(NONE, []), *upgrades],
            optional=True,
            tooltip="Mixed precision: a layer whose error exceeds max_error takes this format, or stays as it is.",
        ),
        _switch("heuristics", "Also keep layers in floating point whose shape gains nothing from quantization."),
        _switch("embeddings", "Quantize token embeddings too."),
        _switch("full_precision_matrix_mult", "Ask ComfyUI to dequantize and multiply in 16 bits."),
        _switch("dequantize", "Accept a model that is quantized already, and dequantize it first."),
    ]


def _measured() -> list[io.Input]:
    return [
        _choice(
            "bias_correction",
            ["off", "measured"],
            DEFAULTS.bias_correction,
            "measured: biases take up the mean error of each layer's output; needs a calibration.",
        ),
        _choice(
            "input_scale",
            list(INPUT_SCALES),
            DEFAULTS.input_scale,
            "Write the scales of FP8 inputs from a calibration, so that none is computed in runs. absmax: of the "
            "largest input. percentile: of all but one in ten thousand. mse: smallest square error.",
        ),
    ]


def _choice(name: str, options: list[str], default: str, tooltip: str) -> io.Input:
    return io.Combo.Input(name, options=options, default=default, optional=True, advanced=True, tooltip=tooltip)


def _switch(name: str, tooltip: str) -> io.Input:
    return io.Boolean.Input(name, default=False, optional=True, advanced=True, tooltip=tooltip)
