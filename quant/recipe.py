"""The settings of a run as one value. It is written into the file, and suffices to make the file again bit for bit.

Every setting is declared once, here; see `settings`. The order of the fields is the order of the nodes' inputs. It
stays, because saved workflows hold values by position: new settings come last, with ``later=True``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from .errors import RecipeError
from .formats import ALIASES, FLOATS, FORMATS, Format
from .formats.rotation import GROUP_SIZES
from .notices import Notice, notice
from .settings import ALWAYS, Alternatives, NodeInput, Setting, Settings, When, section, setting
from .settings.kinds import Choice, Many, Name, Pair, Pattern, Real, Switch, Whole

SOURCE, AUTO, OFF = "source", "auto", "off"

ROUNDINGS: Mapping[str, str] = {
    "nearest": "each weight on its own, in seconds",
    "svd": "learned against the leading singular directions of each weight, in minutes; never worse than nearest "
    "on them",
    "calibrated": "GPTQ/LDLQ against recorded inputs (needs a calibration); closest to the original",
}
OPTIMIZERS: Mapping[str, str] = {
    "original": "gradient descent with adaptive steps",
    "adamw": "AdamW",
    "radam": "RAdam",
    "prodigy": "needs the package prodigy-plus-schedule-free",
    "feedback": "error feedback in LDLQ order, in closed form and fast",
}
METRICS: Mapping[str, str] = {
    "weight": "singular directions of the weight",
    "inputs": "principal directions of recorded inputs (needs a calibration)",
}
SCALES: Mapping[str, str] = {
    "absmax": "the largest weight fits",
    "mse": "smallest squared weight error",
    AUTO: "absmax, but mse for layers where it is significantly better",
}
INPUT_SCALES: Mapping[str, str] = {
    AUTO: "only for FP8 layers where inputs near or above 448 were recorded, which saturate without one",
    OFF: "none",
    "absmax": "the largest recorded input fits",
    "percentile": "one input in ten thousand is clipped",
    "mse": "smallest squared error of the recorded inputs",
}
BIAS_CORRECTIONS: Mapping[str, str] = {
    OFF: "biases stay",
    "measured": "from recorded input means (needs a calibration)",
    "synthetic": "from random inputs, where none were recorded",
}

STEPPING = tuple(name for name in OPTIMIZERS if name != "feedback")
"""Optimizers that take steps."""

FORMAT_NAMES, FLOAT_NAMES = dict.fromkeys(FORMATS, ""), dict.fromkeys(FLOATS, "")
INT4 = {"int4": "no format that ComfyUI loads (w4a8 has 4-bit codes, and INT8 inputs and products)"}
FORMAT = Choice(
    options=FORMAT_NAMES,
    summary="a format",
    aliases=ALIASES,
    misfits=INT4 | dict.fromkeys(FLOATS, "a floating-point format"),
)
FORMAT_OR_FLOAT = Choice(
    options=FORMAT_NAMES | FLOAT_NAMES, summary="a format or a floating-point format", aliases=ALIASES
)
FALLBACK = Choice(
    options={SOURCE: ""} | FORMAT_NAMES | FLOAT_NAMES,
    summary=f"`{SOURCE}`, a format or a floating-point format",
    aliases=ALIASES,
)
FORMAT_OR_AUTO = Choice(
    options={name: fmt.title for name, fmt in FORMATS.items()}
    | {AUTO: "for each layer the format with the smallest measured error; best with a calibration"},
    summary=f"a format or `{AUTO}`",
    aliases=ALIASES,
    misfits={**FORMAT.misfits, "recommended": "the option --recommended of the command line"},
)

TARGET = Alternatives(
    "target",
    "A limit for auto. none: every layer is quantized, in its best format. Otherwise layers may also stay in floating "
    "point: you get the smallest error for a size, or the smallest size for an error.",
)
CALIBRATED_VALUES: Mapping[str, tuple[str, ...]] = {
    "svd.metric": ("inputs",),
    "bias_correction": ("measured",),
    "input_scale": ("absmax", "percentile", "mse"),
}
"""Values of settings that need a calibration."""

WITH_AUTO = When(setting="format", values=(AUTO,))
FOR_AUTO = When(setting="format", values=(AUTO,), implied=True)
"""As `WITH_AUTO`; the option alone chooses ``auto``."""
WITH_SVD = When(setting="rounding", values=("svd",), implied=True)
WITH_CALIBRATED = When(setting="rounding", values=("calibrated",), implied=True)
WITH_STEPS = When(setting="svd.optimizer", values=STEPPING)


@dataclass(frozen=True, kw_only=True)
class SvdSettings(Settings):
    """Settings of svd rounding."""

    prefix: ClassVar[str] = "svd."

    optimizer: str = setting("original", Choice(options=OPTIMIZERS), "Search method of svd rounding.")
    iterations: int = setting(
        60, Whole(1, 10**6), "Steps of the optimizer for each layer.", when=WITH_STEPS, node=NodeInput(maximum=10000)
    )
    lr: float | None = setting(
        None,
        Real(above=0),
        "Learning rate: size of the first step.",
        unset="the optimizer's own",
        when=WITH_STEPS,
        node=NodeInput(name="learning_rate", empty=0.0, minimum=0.0, maximum=100.0, step=0.001, round=0.000001),
    )
    top_p: float = setting(
        0.2,
        Real(above=0, maximum=1.0),
        "Number of singular directions that count, as a share of the weight's smaller side, within min_k and max_k.",
        node=NodeInput(minimum=0.01, step=0.01),
    )
    min_k: int = setting(64, Whole(1, 2**31 - 1), "Fewest singular directions.", node=NodeInput(maximum=8192))
    max_k: int = setting(256, Whole(1, 2**31 - 1), "Most singular directions.", node=NodeInput(maximum=8192))
    metric: str = setting("weight", Choice(options=METRICS), "Which directions count.")
    full: bool = setting(
        False,
        Switch(),
        "Compute an exact SVD instead of a randomized one: slow, and rarely better.",
        node=NodeInput(name="exact_svd"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_k < self.min_k:
            raise RecipeError(f"svd.max_k is {self.max_k}; it must be at least svd.min_k, {self.min_k}.")

    def rank(self, shape: tuple[int, int]) -> int:
        """Number of directions that count for a weight of this shape ``(N, K)``."""
        smaller = min(shape)
        return min(smaller, self.max_k, max(self.min_k, int(self.top_p * smaller)))


@dataclass(frozen=True, kw_only=True)
class CalibratedSettings(Settings):
    """Settings of calibrated rounding."""

    prefix: ClassVar[str] = "calibrated."

    damping: float | None = setting(
        None,
        Real(above=0),
        "Damping of the Hessian: addition to its diagonal, relative to the diagonal's mean.",
        unset="estimated from the calibration rows",
        level="advanced",
        node=NodeInput(empty=0.0, minimum=0.0, maximum=10.0, step=0.001, round=0.0001),
    )
    held_out: float = setting(
        0.125,
        Real(above=0, below=1.0),
        "Share of the calibration rows that are held out to validate codes, and never learned from.",
        level="expert",
        when=ALWAYS,
    )
    passes: int = setting(
        2,
        Whole(0, 10**6),
        "Maximum passes of coordinate descent after LDLQ. A layer stops early when a pass gains little; each takes "
        "about as long as LDLQ.",
        level="advanced",
        node=NodeInput(maximum=20),
    )


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """How to quantize a model. Raises RecipeError for unknown or contradictory settings."""

    format: str = setting(
        "int8_convrot",
        FORMAT_OR_AUTO,
        "How weights are stored. Start with int8_convrot.",
        group="format",
    )
    formats: tuple[str, ...] = setting(
        ("int8_convrot", "float8_e4m3fn"),
        Many(FORMAT),
        "Formats that auto chooses from.",
        group="format",
        when=WITH_AUTO,
    )
    target_share: float | None = setting(
        None,
        Real(above=0),
        "Largest size of the result, as a share of the model's size.",
        group="format",
        when=FOR_AUTO,
        alternatives=TARGET,
        node=NodeInput(label="share", default=0.6, minimum=0.01, maximum=1.0, step=0.01, round=0.0001),
    )
    target_gb: float | None = setting(
        None,
        Real(above=0),
        "Largest size of the result in gigabytes (10^9 bytes).",
        group="format",
        when=FOR_AUTO,
        alternatives=TARGET,
        node=NodeInput(label="gigabytes", default=8.0, minimum=0.1, maximum=1000.0, step=0.1, round=0.001),
    )
    target_error: float | None = setting(
        None,
        Real(above=0),
        "Largest relative output error of all layers together (W8A8; without a calibration, weight error).",
        group="format",
        when=FOR_AUTO,
        alternatives=TARGET,
        node=NodeInput(label="error", default=0.005, minimum=0.001, maximum=1.0, step=0.001, round=0.00001),
    )
    profile: str = setting(
        AUTO,
        Name(f"`{AUTO}`, a profile"),
        "Which layers stay in floating point. auto recognises the model; a profile that does not describe the model is "
        "refused.",
        group="layers",
        node=NodeInput(choices="profiles"),
    )
    rounding: str = setting("nearest", Choice(options=ROUNDINGS), "How codes are chosen.", group="rounding")
    svd: SvdSettings = field(
        default_factory=SvdSettings, metadata=section(SvdSettings, when=WITH_SVD, group="svd rounding")
    )
    calibrated: CalibratedSettings = field(
        default_factory=CalibratedSettings,
        metadata=section(CalibratedSettings, when=WITH_CALIBRATED, group="calibrated rounding"),
    )
    seed: int = setting(
        0,
        Whole(),
        "Seed of the randomized SVD and of synthetic bias correction.",
        group="rounding",
        node=NodeInput(name="random_seed", minimum=0, maximum=2**31 - 1, within=WITH_SVD),
    )
    exclude: tuple[str, ...] = setting(
        (),
        Many(Pattern(), lines=True),
        "Layers to keep in floating point: regular expressions that are searched in layer names.",
        level="advanced",
        group="layers",
    )
    scale: str = setting("absmax", Choice(options=SCALES), "How scales are chosen.", level="advanced", group="format")
    rotation_group: int | str = setting(
        GROUP_SIZES[0],
        Choice(
            options=dict.fromkeys(GROUP_SIZES, "")
            | {AUTO: "256, but another group or none for layers where it is significantly better"}
        ),
        "Largest group of inputs that the Hadamard rotation of rotated formats mixes.",
        level="advanced",
        group="format",
        when=When(setting="rotates", notice="rotation_group_unused"),
    )
    overrides: tuple[tuple[str, str], ...] = setting(
        (),
        Many(Pair(Pattern(), FORMAT_OR_FLOAT, "REGEX=FORMAT"), lines=True),
        "Formats of single layers: regular expressions that are searched in layer names; the first match decides. "
        "bfloat16, float16 and float32 keep a layer.",
        level="advanced",
        group="layers",
    )
    fallback: str = setting(
        SOURCE,
        FALLBACK,
        "Format of layers whose shape the chosen format cannot take; source keeps them.",
        level="advanced",
        group="layers",
    )
    keep_dtype: str = setting(
        SOURCE,
        Choice(options={SOURCE: "unchanged"} | FLOAT_NAMES, aliases=ALIASES),
        "Dtype of tensors that stay in floating point.",
        level="advanced",
        group="layers",
    )
    upgrade: str | None = setting(
        None,
        FORMAT,
        "Mixed precision: a layer whose weight error exceeds max_error takes this format, or stays in floating point. "
        "Not with auto.",
        level="advanced",
        group="layers",
    )
    max_error: float | None = setting(
        None,
        Real(above=0),
        "Largest relative weight error of a layer, with upgrade.",
        group="layers",
        when=When(setting="upgrade"),
        node=NodeInput(default=0.05, minimum=0.0001, maximum=1.0, step=0.001),
    )
    heuristics: bool = setting(
        False,
        Switch(),
        "Also keep layers whose shape gains nothing from quantization: a side below 256, or not divisible by 16.",
        level="advanced",
        group="layers",
    )
    embeddings: bool = setting(False, Switch(), "Quantize token embeddings too.", level="advanced", group="layers")
    full_precision_matrix_mult: bool = setting(
        False,
        Switch(),
        "Ask ComfyUI to dequantize weights and multiply in 16 bits (W8A16). ComfyUI before 0.38 ignores it for INT8.",
        level="advanced",
        group="format",
    )
    dequantize: bool = setting(
        False,
        Switch(),
        "Accept a model that is quantized already, and dequantize it first.",
        level="advanced",
        group="files",
    )
    bias_correction: str = setting(
        OFF,
        Choice(options=BIAS_CORRECTIONS),
        "Correct biases for the mean error of each layer's output.",
        level="advanced",
        group="rounding",
        node=NodeInput(omitted=("synthetic",)),
    )
    input_scale: str = setting(
        AUTO,
        Choice(options=INPUT_SCALES),
        "Write static scales for FP8 and NVFP4 inputs, from a calibration.",
        level="advanced",
        group="format",
        bare="absmax",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = self._targets()
        if targets and self.format != AUTO:
            raise RecipeError(f"{targets[0]} needs the format {AUTO}; {self.format} leaves nothing to choose.")
        if self.format == AUTO and (not self.formats or self.upgrade is not None):
            raise RecipeError("The format auto needs at least one of formats to choose from, and takes no upgrade.")
        if (self.upgrade is None) != (self.max_error is None):
            raise RecipeError("upgrade and max_error belong together: give both, or neither.")

    def _targets(self) -> list[str]:
        alternatives = (name for name, declared in self.declarations().items() if declared.alternatives is TARGET)
        return [name for name in alternatives if self.get(name) is not None]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The formats that a layer may take, overrides and fallback aside."""
        return self.formats if self.format == AUTO else (self.format,)

    @property
    def open_formats(self) -> tuple[str, ...]:
        """The formats that ``auto`` chooses from; empty if the format is named."""
        return self.formats if self.format == AUTO else ()

    def without_formats(self, names: Collection[str]) -> Recipe:
        """The recipe with fewer formats for ``auto``; the same if the format is named, or none would be left."""
        left = tuple(name for name in self.open_formats if name not in names)
        return replace(self, formats=left) if left else self

    @property
    def has_target(self) -> bool:
        return bool(self._targets())

    @property
    def usable_formats(self) -> tuple[Format, ...]:
        """All formats that a layer may take."""
        names = {*self.candidates, self.upgrade, self.fallback, *(fmt for _, fmt in self.overrides)}
        return tuple(fmt for name, fmt in FORMATS.items() if name in names)

    @property
    def rotates(self) -> bool:
        """Whether a layer may take a rotated format."""
        return any(fmt.rotated for fmt in self.usable_formats)

    @property
    def conversion_rotation(self) -> int | None:
        """Largest rotation group if every format is rotated and of less than 8 bits: INT8 ConvRot converts to these."""
        limit = GROUP_SIZES[0] if isinstance(self.rotation_group, str) else self.rotation_group
        return limit if all(fmt.needs_rotation for fmt in self.usable_formats) else None

    @property
    def learns(self) -> bool:
        """Whether anything is made from measured inputs; if not, a calibration only measures."""
        chosen = AUTO in (self.format, self.scale, self.rotation_group)
        return self.rounding == "calibrated" or chosen or bool(self.list_calibrated())

    def list_calibrated(self) -> list[Setting]:
        """The settings that have no effect without a calibration, `rounding` aside, which is refused without one."""
        declared = self.declarations()
        return [declared[name] for name, values in CALIBRATED_VALUES.items() if self.get(name) in values]

    def list_unmet(self) -> list[tuple[Setting, When]]:
        """The settings that are not as by default and have no effect, with the condition that they lack."""
        changed = [declared for name, declared in self.declarations().items() if self.get(name) != declared.default]
        return [(declared, when) for declared in changed if (when := self.find_unmet(declared)) is not None]

    def note_unused(self, option: str, when: When) -> Notice:
        """A notice that an option has no effect, because a condition is not met."""
        if when.notice:
            return notice(when.notice, option=option)
        return notice("option_unused", option=option, setting=when.setting, value=str(self.get(when.setting)))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a JSON file. Raises RecipeError if it cannot be read or holds other settings."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"The recipe file '{path}' cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError):
            raise RecipeError(f"The recipe file '{path}' is not JSON.") from None
        if not isinstance(data, dict):
            raise RecipeError(f"The recipe file '{path}' must hold a JSON object.")
        return cls.from_dict(data)
