"""The recipe that fits a machine and a model best: the closest measured format that the preset allows.

Closeness decides, and a card's units decide what was measured for it: a card with FP8 units rounds the inputs of FP8
layers, which another one keeps. Nothing here is estimated. A format that was not measured as the machine runs it is
chosen only if no other one is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, prod

from ..formats import FORMATS, Format
from ..notices import Notice, Value, notice
from ..recipe import AUTO, Recipe
from ..settings import Setting
from ..settings.kinds import Choice
from .machine import Machine, Way
from .plan import Plan
from .profiles import get_profile
from .size_curve import GIGABYTE

RECOMMENDED = "recommended"
"""The choice in place of a format."""

ACTIVATION_SHARE = 0.2
"""Share of the memory that is left to activations. A rule, not a measurement: it depends on the size of the picture."""

FEW_BITS = 0.6
"""Most bytes a weight of the preset small."""

SMALL, BALANCED, BEST = "small", "balanced", "best"
PRESETS: Mapping[str, str] = {
    BALANCED: "the closest format that leaves a fifth of the card's memory free",
    SMALL: "the closest format of about 4 bits a weight",
    BEST: "the closest format, whatever its size; with sensitivities, auto chooses the layers that stay in float",
}
"""The presets, the default first."""

PRESET = Setting(
    kind=Choice(options=PRESETS),
    help="What matters most.",
    default=BALANCED,
    name="preset",
)
"""The input beside `RECOMMENDED`; no setting of a recipe, which holds what was chosen."""


@dataclass(frozen=True)
class Closeness:
    """PSNR of sampled latents against the float model's in decibels, for the two roundings."""

    nearest: float
    calibrated: float

    def of(self, calibrated: bool) -> float:
        return self.calibrated if calibrated else self.nearest


CLOSENESS: Mapping[str, Closeness] = {
    "int8_convrot": Closeness(56.4, 57.8),
    "int8_blockwise": Closeness(52.1, 53.6),
    "int8_row": Closeness(51.2, 52.0),
    "int8_tensor": Closeness(50.4, 51.8),
    "float8_e4m3fn": Closeness(48.6, 56.9),
    "mxfp8": Closeness(47.6, 56.8),
    "float8_e5m2": Closeness(41.6, 50.1),
    "w6a8": Closeness(49.7, 56.3),
    "w4a8": Closeness(39.9, 48.7),
    "nvfp4": Closeness(35.0, 47.6),
}
"""README's table of closeness (benchmarks/results/sampling.json); inputs of FP8, MXFP8 and NVFP4 layers in 16 bits."""

ROUNDED_INPUTS: Mapping[str, Closeness | None] = {
    "float8_e4m3fn": Closeness(44.1, 45.6),
    "mxfp8": None,
    "nvfp4": None,
}
"""The same on a card that multiplies in the format, so that it rounds the inputs to it; None: not measured."""


DECIDED = ("format", "formats", "target_share", "target_gb", "target_error", "rounding", "upgrade", "max_error")
"""Settings that a recommendation decides."""
UNDECIDED = {name: Recipe.declarations()[name].default for name in DECIDED}

FP8 = "float8_e4m3fn"
WITH_MEMORY = ("recommended_fits", "recommended_too_large")


@dataclass(frozen=True, kw_only=True)
class FormatRow:
    """A format on a machine."""

    name: str
    bytes_per_weight: float
    way: Way
    loads: bool
    """Whether the machine's ComfyUI loads it."""
    closeness: Closeness | None
    """As the machine runs it; None: not measured."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A recipe, and why."""

    recipe: Recipe
    plan: Plan
    """Of the recipe, before measurement."""
    reasons: tuple[Notice, ...]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The question that a recommendation answers."""

    machine: Machine
    preset: str = BALANCED
    calibrated: bool = False
    """A calibration is there."""
    sensitivities: bool = False
    """It has sensitivities."""


def list_formats(machine: Machine) -> list[FormatRow]:
    """Every format on a machine, the closest of every size first."""
    rows = [
        FormatRow(
            name=name,
            bytes_per_weight=bytes_per_weight(fmt),
            way=machine.runs(fmt),
            loads=name in machine.loads,
            closeness=_closeness(fmt, machine),
        )
        for name, fmt in FORMATS.items()
    ]
    return sorted(rows, key=lambda row: (-round(row.bytes_per_weight, 1), -_rank(row, calibrated=False)))


def bytes_per_weight(fmt: Format, shape: tuple[int, int] = (1024, 1024)) -> float:
    """Bytes that a format takes for each weight of a layer, its scales included."""
    return sum(dtype.itemsize * prod(size) for dtype, size in fmt.layout(shape).values()) / prod(shape)


def recommend(make_plan: Callable[[Recipe], Plan], base: Recipe, situation: Situation) -> Recommendation:
    """Choose format, rounding and target.

    Args:
        make_plan: Plans the model with a recipe.
        base: The settings that are not in `DECIDED`.
        situation: The machine, the preset and the calibration.

    Raises:
        QuantError: as ``make_plan``.
    """
    base = replace(base.with_values(UNDECIDED), rounding="calibrated" if situation.calibrated else "nearest")
    if get_profile(make_plan(base).profile).kind == "text_encoder":
        situation = replace(situation, machine=situation.machine.without_products())
    chosen, plan = _choose_format(make_plan, base, situation)
    recipe = replace(base, format=chosen)
    by_layer = situation.preset == BEST and situation.sensitivities
    if by_layer:
        recipe = replace(recipe, format=AUTO, formats=(chosen,), target_gb=plan.nbytes / GIGABYTE)
    kind = "recommended_layers" if by_layer else _reason(plan, situation)
    reasons = (_explain(kind, chosen, recipe.rounding, situation), *_remarks(chosen, plan, situation))
    return Recommendation(recipe=recipe, plan=plan, reasons=reasons)


def _choose_format(make_plan: Callable[[Recipe], Plan], base: Recipe, situation: Situation) -> tuple[str, Plan]:
    if situation.preset == BALANCED:
        for name in rank_formats(situation):
            plan = make_plan(replace(base, format=name))
            if _leaves_room(plan.nbytes, situation.machine):
                return name, plan
        situation = replace(situation, preset=SMALL)
    name = rank_formats(situation)[0]
    return name, make_plan(replace(base, format=name))


def rank_formats(situation: Situation) -> list[str]:
    """The formats that the preset allows, the closest first."""
    limit = FEW_BITS if situation.preset == SMALL else inf
    rows = [row for row in list_formats(situation.machine) if row.loads and FORMATS[row.name].stock]
    allowed = [row for row in rows if row.bytes_per_weight <= limit] or rows
    return [row.name for row in sorted(allowed, key=lambda row: -_rank(row, calibrated=situation.calibrated))]


def _rank(row: FormatRow, *, calibrated: bool) -> float:
    return 0.0 if row.closeness is None else row.closeness.of(calibrated)


def _closeness(fmt: Format, machine: Machine) -> Closeness | None:
    if fmt.name in ROUNDED_INPUTS and machine.runs(fmt) != "memory":
        return ROUNDED_INPUTS[fmt.name]
    return CLOSENESS.get(fmt.name)


def _leaves_room(nbytes: int, machine: Machine) -> bool:
    return machine.memory is None or nbytes <= (1 - ACTIVATION_SHARE) * machine.memory


def _reason(plan: Plan, situation: Situation) -> str:
    """Kind of the notice that says why."""
    if situation.preset != BALANCED or situation.machine.memory is None:
        return "recommended_small" if situation.preset == SMALL else "recommended_best"
    return "recommended_fits" if _leaves_room(plan.nbytes, situation.machine) else "recommended_too_large"


def _explain(kind: str, chosen: str, rounding: str, situation: Situation) -> Notice:
    values: dict[str, Value] = {"format": chosen, "rounding": rounding}
    if kind in WITH_MEMORY and situation.machine.memory is not None:
        values["memory"] = _size(situation.machine.memory)
    return notice(kind, None, **values)


def _remarks(chosen: str, plan: Plan, situation: Situation) -> list[Notice]:
    machine, remarks, closeness = situation.machine, list[Notice](), CLOSENESS.get(chosen)
    if machine.memory is not None and _leaves_room(plan.source_nbytes, machine):
        remarks.append(notice("float_fits", size=_size(plan.source_nbytes), memory=_size(machine.memory)))
    if closeness is not None and not situation.calibrated:
        remarks.append(notice("calibration_helps", nearest=closeness.nearest, calibrated=closeness.calibrated))
    rounded = ROUNDED_INPUTS[FP8]
    if closeness is not None and rounded is not None and machine.rounds_inputs(FORMATS[FP8]) and chosen != FP8:
        fp8, here = rounded.of(situation.calibrated), closeness.of(situation.calibrated)
        remarks.append(notice("fp8_less_close", fp8=fp8, format=chosen, closeness=here))
    return remarks


def _size(nbytes: int) -> str:
    return f"{nbytes / GIGABYTE:.3g} GB" if nbytes >= GIGABYTE else f"{nbytes / 1e6:.3g} MB"
