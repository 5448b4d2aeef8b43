"""The inputs that make up a recipe, for every node that takes one, and the recipe that their values mean."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..quant import Recipe, SvdSettings
from ..quant.calibration import Calibration
from ..quant.errors import RecipeError
from ..quant.formats import FLOATS, FORMATS
from ..quant.profiles import get_profile, profile_names
from ..quant.recipe import INPUT_SCALES, SCALES, SOURCE
from ..quant.rotation import GROUP_SIZES
from ..quant.rounding import METRICS, OPTIMIZERS, CalibratedSettings

QuantRecipe = io.Custom("QUANT_RECIPE")
QuantCalibration = io.Custom("QUANT_CALIBRATION")

AUTO, NONE = "auto", "none"
FEEDBACK = "feedback"
PLAIN = (
    *("scale", "fallback", "heuristics", "embeddings", "keep_dtype", "full_precision_matrix_mult", "dequantize"),
    *("bias_correction", "input_scale"),
)
"""Inputs whose value is that of the recipe's field of the same name."""
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
        tooltip="Recorded inputs of this model's layers, for calibrated rounding, bias_correction and input_scale.",
    )


def unused_note(recipe: Recipe, calibration: Calibration | None) -> str:
    """Says so if a calibration is linked and nothing is learned from it; else empty."""
    if calibration is None or recipe.learns:
        return ""
    return f"\nThe calibration only measured the error: {recipe.rounding} rounding learns nothing from it."


def make_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe that a node's values mean: the linked one, if there is one. Raises RecipeError."""
    linked = values.get("recipe")
    if linked is not None:
        return linked
    rounding = values["rounding"]
    settings: dict[str, Any] = {"format": values["format"], "profile": values["profile"], **_mixed(values)}
    settings["rounding"] = rounding["rounding"]
    if rounding["rounding"] == "svd":
        settings |= {"svd": _svd(rounding), "seed": rounding["random_seed"]}
    if rounding["rounding"] == "calibrated":
        settings["calibrated"] = CalibratedSettings(damping=rounding["damping"] or None, passes=rounding["passes"])
    settings["rotation_group"] = int(values.get("rotation_group", DEFAULTS.rotation_group))
    settings["exclude"] = lines(values.get("exclude", ""))
    settings["overrides"] = tuple(map(_override, lines(values.get("overrides", ""))))
    return Recipe(**settings, **{name: values[name] for name in PLAIN if name in values})


def _svd(values: dict[str, Any]) -> SvdSettings:
    optimizer = values["optimizer"]
    steps = {}
    if optimizer["optimizer"] != FEEDBACK:
        steps = {"iterations": optimizer["iterations"], "lr": optimizer["learning_rate"] or None}
    directions = {name: values[name] for name in ("top_p", "min_k", "max_k", "metric")}
    return SvdSettings(optimizer=optimizer["optimizer"], full=values["exact_svd"], **steps, **directions)


def _mixed(values: dict[str, Any]) -> dict[str, Any]:
    upgrade = values.get("upgrade") or {"upgrade": NONE}
    if upgrade["upgrade"] == NONE:
        return {}
    return {"upgrade": upgrade["upgrade"], "max_error": upgrade["max_error"]}


def _override(line: str) -> tuple[str, str]:
    pattern, equals, fmt = line.rpartition("=")
    if not equals:
        raise RecipeError(f"The override '{line}' has no '='; write REGEX=FORMAT, one a line.")
    return pattern.strip(), fmt.strip()


def lines(text: str) -> tuple[str, ...]:
    """What a text has one a line; empty lines are left out."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _format() -> io.Input:
    titles = "\n".join(f"{name}: {fmt.title}" for name, fmt in FORMATS.items())
    return io.Combo.Input(
        "format", options=list(FORMATS), default="int8_convrot", tooltip=f"How the weights are stored.\n{titles}"
    )


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
        tooltip="nearest: round each weight on its own, seconds. svd: learn which way to round from the leading "
        "directions of each layer's weight, minutes; never worse than nearest on those. calibrated: learn it from "
        "recorded inputs, which the calibration input gives; closest.",
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
            tooltip="Rounds of improving every weight once more; each takes about as long as the first rounding.",
        ),
    ]


def _svd_inputs() -> list[io.Input]:
    options = [io.DynamicCombo.Option(name, [] if name == FEEDBACK else _step_inputs()) for name in OPTIMIZERS]
    return [
        io.DynamicCombo.Input(
            "optimizer",
            options=options,
            tooltip="What searches the roundings. original: adaptive steps. feedback: closed form, fast. prodigy "
            "needs the package prodigy-plus-schedule-free.",
        ),
        io.Float.Input(
            "top_p", default=SVD.top_p, min=0.01, max=1.0, step=0.01, tooltip="Share of directions that count."
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
            tooltip="Layers to keep in floating point: regular expressions, one a line.",
        ),
        _choice(
            "scale",
            list(SCALES),
            DEFAULTS.scale,
            "absmax: the largest weight fits. mse: smallest square error. auto: the better one for each layer, by the "
            "error of its output on recorded inputs.",
        ),
        _choice(
            "rotation_group",
            [str(size) for size in sorted(GROUP_SIZES, reverse=True)],
            str(DEFAULTS.rotation_group),
            "Largest group of inputs that a rotated format turns together.",
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
        _choice("keep_dtype", [SOURCE, *FLOATS], DEFAULTS.keep_dtype, "Dtype of what stays in floating point."),
        io.DynamicCombo.Input(
            "upgrade",
            options=[io.DynamicCombo.Option(NONE, []), *upgrades],
            optional=True,
            tooltip="Mixed precision: a layer whose error exceeds max_error takes this format, or stays as it is.",
        ),
        _switch("heuristics", "Also leave layers whose shape gains nothing from quantization."),
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
