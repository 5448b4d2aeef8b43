"""Errors of whole networks' outputs when calibrated rounding learns from other inputs, or chooses among more settings.

    python benchmarks/outputs.py [--json FILE] [--networks NAME,NAME...] [--formats NAME,NAME...]
        [--variants "NAME;NAME..."]

The shipped model, and three layers each of MiniLM and SmolLM2 (see _minilm.py and _smollm.py). They are quantized,
dequantized and put back; the whole network then runs in float on inputs that neither calibration nor acceptance has
seen. "output" is ||quantized - float|| / ||float|| over all outputs, "output to calibrated" its ratio to
the variant "calibrated", as the geometric mean over texts or pictures with its standard error. "layers to calibrated"
is the same ratio of the layers' output errors (W8A8) on the float network's unseen inputs, as the geometric mean over
layers, and "worst layer" the largest. Variants:

- "calibrated": 2,048 rows. "4096 rows": twice as many.
- "quantized inputs": recorded a second time, with the network that "calibrated" has made.
- "corrected target": the same, and the target is the float network's output: the weight is replaced by the one that
  comes closest to it on those inputs, W X X_q^T (X_q X_q^T)^-1 (GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695).
- "in order", "in order, corrected": as the two before, recorded again for each layer, with all layers before it
  quantized. One run of the network for each layer.
- "chosen": each layer has the scale method and the rotation group that `auto` chooses. "smallest error": those with the
  smallest error on held-out rows, whether that is significant or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from _models import MODEL_LOADERS, Model
from _table import Row, arguments, emit
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.formats import FORMATS, Format
from calibrated_rounding.quant.formats.dequantize import dequantize_layer
from calibrated_rounding.quant.formats.rotation import group_sizes, rotate
from calibrated_rounding.quant.layer.choice import Alternative, choose_alternative
from calibrated_rounding.quant.layer.quantize import quantize_layer
from calibrated_rounding.quant.layer.task import LayerTask
from calibrated_rounding.quant.recipe import Recipe
from calibrated_rounding.quant.rounding.calibrated import estimate_hessian
from torch import Tensor

ROWS = 2048
BASE = "calibrated"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that was quantized and dequantized."""

    weight: Tensor
    group: int | None
    """Rotation group."""
    measured: Alternative


Layers = dict[str, Layer]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One network in one format."""

    model: Model
    format: Format
    calibrations: dict[int, Calibration]
    """Recorded by the float network, by rows; shared by all formats."""
    done: dict[str, Layers] = field(default_factory=dict)
    """By variant."""
    alternatives: dict[str, list[Layer]] = field(default_factory=dict)
    """By layer."""

    def recorded(self, rows: int = ROWS) -> Calibration:
        if rows not in self.calibrations:
            self.calibrations[rows] = self.model.record(self.model.learned, rows)
        return self.calibrations[rows]

    def quantize(self, recipe: Recipe, calibration: Calibration) -> Layers:
        weights = self.model.weights.items()
        return {name: self.quantize_layer(name, weight, recipe, calibration[name]) for name, weight in weights}

    def quantize_layer(
        self, name: str, weight: Tensor, recipe: Recipe, inputs: InputStatistics, group: int | None = None
    ) -> Layer:
        group = self.groups(weight)[0] if group is None else group
        fmt = self.format
        task = LayerTask(name=name, weight=weight, format=fmt, group=group or None, recipe=recipe, inputs=inputs)
        result = quantize_layer(task)
        dequantized = dequantize_layer(result.codes, result.scale, fmt, task.group, task.shape)
        return Layer(weight=dequantized, group=task.group, measured=Alternative.of(result))

    def groups(self, weight: Tensor) -> list[int]:
        """Rotation groups that a layer may have, the default first; 0: none."""
        unrotated = [] if self.format.needs_rotation else [0]
        return [*(group_sizes(weight.shape[1]) if self.format.rotated else ()), *unrotated]

    def alternatives_of(self, name: str) -> list[Layer]:
        """The layer with every scale method and rotation, the defaults first."""
        if name not in self.alternatives:
            weight, inputs = self.model.weights[name], self.recorded()[name]
            recipes = [Recipe(rounding="calibrated", scale=scale) for scale in self.format.scale_methods]
            self.alternatives[name] = [
                self.quantize_layer(name, weight, recipe, inputs, group)
                for group in self.groups(weight)
                for recipe in recipes
            ]
        return self.alternatives[name]


Variant = Callable[[Trial], Layers]


def quantize(rounding: str, rows: int = ROWS) -> Variant:
    return lambda trial: trial.quantize(Recipe(rounding=rounding), trial.recorded(rows))


def learn_again(*, corrected: bool) -> Variant:
    """Record a second time with all layers quantized, then quantize the float layers."""

    def variant(trial: Trial) -> Layers:
        model = trial.model
        with model.replaced({name: layer.weight for name, layer in trial.done[BASE].items()}):
            inputs = model.record(model.learned, ROWS)
        return {name: _learn(trial, name, inputs[name], corrected) for name in model.layers}

    return variant


def learn_in_order(*, corrected: bool) -> Variant:
    """Record again for each layer, with all layers before it quantized."""

    def variant(trial: Trial) -> Layers:
        model, result = trial.model, Layers()
        for names in _steps(trial.recorded()):
            with model.replaced({name: layer.weight for name, layer in result.items()}):
                inputs = model.record(model.learned, ROWS, names)
            result |= {name: _learn(trial, name, inputs[name], corrected) for name in names}
        return result

    return variant


def _steps(calibration: Calibration) -> list[list[str]]:
    """Layers in the order in which they run; layers with the same input together."""
    steps: dict[str, list[str]] = {}
    for name, leader in calibration.shared.items():
        steps.setdefault(leader, []).append(name)
    return list(steps.values())


def _learn(trial: Trial, name: str, inputs: InputStatistics, corrected: bool) -> Layer:
    weight, recipe = trial.model.weights[name], Recipe(rounding="calibrated")
    if corrected:
        floats, rounded = (s.rows.float() for s in (trial.recorded()[name], inputs))
        first = round(recipe.calibrated.held_out * len(floats))
        weight = correct_target(weight, floats[first:], rounded[first:])
    return trial.quantize_layer(name, weight, recipe, inputs)


def correct_target(weight: Tensor, floats: Tensor, rounded: Tensor) -> Tensor:
    """The weight that comes closest to the float output on the quantized network's inputs, damped towards ``weight``.

    Args:
        weight: ``[N, K]``.
        floats: Inputs X in the float network, ``[R, K]``.
        rounded: Inputs of the same rows in the quantized network.
    """
    scale = rounded.abs().amax()
    cross = (rounded / scale).T @ ((floats - rounded) / scale) / len(rounded)
    return weight + torch.linalg.solve(estimate_hessian(rounded), cross @ weight.T).T


def choose(rule: Callable[[Sequence[Alternative]], int]) -> Variant:
    def variant(trial: Trial) -> Layers:
        result = {}
        for name in trial.model.layers:
            layers = trial.alternatives_of(name)
            result[name] = layers[rule([layer.measured for layer in layers])]
        return result

    return variant


def take_smallest(alternatives: Sequence[Alternative]) -> int:
    return min(range(len(alternatives)), key=lambda index: alternatives[index].error)


VARIANTS: Mapping[str, Variant] = {
    "nearest": quantize("nearest"),
    BASE: quantize("calibrated"),
    "4096 rows": quantize("calibrated", 2 * ROWS),
    "quantized inputs": learn_again(corrected=False),
    "corrected target": learn_again(corrected=True),
    "in order": learn_in_order(corrected=False),
    "in order, corrected": learn_in_order(corrected=True),
    "smallest error": choose(take_smallest),
    "chosen": choose(choose_alternative),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", default=",".join(MODEL_LOADERS), help="names of networks")
    parser.add_argument("--formats", default="w6a8,w4a8,nvfp4,int8_convrot", help="names of formats")
    parser.add_argument(
        "--variants", help="names of variants, with semicolons, beside calibrated (default: all)", default=""
    )
    options = parser.parse_args()
    variants = options.variants.split(";") if options.variants else list(VARIANTS)
    models = [MODEL_LOADERS[name]() for name in options.networks.split(",")]
    rows = [row for model in models for row in rows_of(model, options.formats.split(","), [BASE, *variants])]
    emit(rows, options.json, "Errors of whole networks' outputs")


def rows_of(model: Model, formats: list[str], variants: list[str]) -> Iterator[Row]:
    calibrations: dict[int, Calibration] = {}
    judged = model.record(model.judged, ROWS)
    reference = model.run(model.judged)
    for name in formats:
        trial = Trial(model=model, format=FORMATS[name], calibrations=calibrations)
        errors: dict[str, Tensor] = {}
        layer_errors: dict[str, Tensor] = {}
        for variant in dict.fromkeys(variants):
            layers = trial.done[variant] = VARIANTS[variant](trial)
            with model.replaced({name: layer.weight for name, layer in layers.items()}):
                errors[variant] = (model.run(model.judged) - reference).norm(dim=1)
            layer_errors[variant] = torch.tensor(
                [_output_error(trial, name, layer, judged[name].rows.float()) for name, layer in layers.items()]
            )
            case = f"{model.name}, {name}, {variant}"
            total = float(errors[variant].norm() / reference.norm())
            print(f"{case}: {total:.6f}", flush=True)
            yield Row(case=case, metric="output", value=total, unit="ratio")
            yield from _compare(case, errors[variant] / errors[BASE], layer_errors[variant] / layer_errors[BASE])


def _compare(case: str, outputs: Tensor, layers: Tensor) -> Iterator[Row]:
    logs = outputs.log()
    values = {
        "output to calibrated": logs.mean().exp(),
        "standard error": logs.std() / len(logs) ** 0.5,
        "layers to calibrated": layers.log().mean().exp(),
        "worst layer": layers.max(),
    }
    return (Row(case=case, metric=metric, value=float(value), unit="ratio") for metric, value in values.items())


def _output_error(trial: Trial, name: str, layer: Layer, rows: Tensor) -> float:
    """Output error (W8A8) of a layer on inputs of the float network."""
    reference = rows @ trial.model.weights[name].T
    stored = trial.format.round_inputs(rotate(rows, layer.group) if layer.group else rows)
    inputs = rotate(stored, layer.group) if layer.group else stored
    return float((inputs @ layer.weight.T - reference).norm() / reference.norm())


if __name__ == "__main__":
    main()
