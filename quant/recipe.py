"""The user's choices as one value: what is written into a file's metadata, and enough to make the file again bit for
bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .formats import FLOATS, FORMATS, format_name
from .formats.rotation import GROUP_SIZES
from .formats.scales import SCALE_METHODS
from .patterns import check_pattern

ROUNDINGS = ("nearest", "svd", "calibrated")
SOURCE = "source"
AUTO = "auto"
OFF = "off"
SCALES = (*SCALE_METHODS, AUTO)
BIAS_CORRECTIONS = (OFF, "measured", "synthetic")
LISTS = ("formats", "exclude")
TARGETS = ("target_gb", "target_share", "target_error")
INPUT_SCALES = (OFF, "absmax", "percentile", "mse")


OPTIMIZERS = ("original", "adamw", "radam", "prodigy", "feedback")
METRICS = ("weight", "inputs")


@dataclass(frozen=True)
class SvdSettings:
    """optimizer: one of `OPTIMIZERS`. iterations and lr (None: the optimizer's own) steer all but feedback.

    The number of directions k is ``top_p`` of the weight's smaller side, at least ``min_k`` and at most ``max_k``.
    full: an exact SVD instead of the randomized one. metric: whose directions they are, one of `METRICS`.
    """

    optimizer: str = "original"
    iterations: int = 60
    lr: float | None = None
    top_p: float = 0.2
    min_k: int = 64
    max_k: int = 256
    full: bool = False
    metric: str = "weight"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(f"Unknown optimizer '{self.optimizer}'; choose one of {', '.join(OPTIMIZERS)}.")
        if self.metric not in METRICS:
            raise RecipeError(f"Unknown metric '{self.metric}'; choose one of {', '.join(METRICS)}.")
        checks = {
            "iterations": (self.iterations >= 1, "at least 1"),
            "lr": (self.lr is None or self.lr > 0, "above 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_k": (self.min_k >= 1, "at least 1"),
            "max_k": (self.max_k >= self.min_k, "at least min_k"),
        }
        for name, (fine, range_text) in checks.items():
            if not fine:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be {range_text}.")

    def rank(self, shape: tuple[int, int]) -> int:
        smaller = min(shape)
        return min(smaller, self.max_k, max(self.min_k, int(self.top_p * smaller)))


@dataclass(frozen=True)
class CalibratedSettings:
    """damping: added to the metric's diagonal, relative to its mean; None: found from the sample. held_out: share of
    the sample that decides. passes: of coordinate descent after the error feedback, at most; the last is the one that
    removes less than `LEAST_GAIN` of the cost, which for most INT8 layers is the first.
    """

    damping: float | None = None
    held_out: float = 0.125
    passes: int = 2

    def __post_init__(self) -> None:
        checks = {
            "damping": (self.damping is None or self.damping > 0, "above 0"),
            "held_out": (0 < self.held_out < 1, "between 0 and 1"),
            "passes": (self.passes >= 0, "0 or more"),
        }
        for name, (fine, range_text) in checks.items():
            if not fine:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be {range_text}.")


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    format: a name of `formats.FORMATS` (or an alias), or ``auto``: for each layer one of ``formats``, so that the
    summed measured error is least. With one of the targets layers may also stay, and the size is at most ``target_gb``
    (10^9 bytes) or ``target_share`` of the source, or the error at most ``target_error``. profile: a profile's name, or
    ``auto``. rounding: one of `ROUNDINGS`; ``svd`` and ``calibrated`` hold their settings. scale: ``absmax`` or
    ``mse``. rotation_group: largest group that a rotated format uses, or ``auto``: the group of each layer that leaves
    the least measured error, or none. overrides: (regular expression, format) pairs searched in layer names, the first
    match decides; a floating-point format keeps the layer. exclude: expressions of layers to keep. fallback: the format
    of layers that the chosen one cannot take, ``source`` to keep them. heuristics: also leave layers whose shape gains
    nothing. embeddings: quantize token embeddings too. keep_dtype: dtype of what stays in floating point, ``source``
    for no change. upgrade and max_error, given together: a layer whose relative weight error exceeds max_error takes
    the upgrade format if that stays below, else it is kept. bias_correction: one of `BIAS_CORRECTIONS`.
    full_precision_matrix_mult: ask the host to dequantize and multiply in 16 bits. input_scale: how static scales of
    FP8 inputs are found from measured ones, one of `INPUT_SCALES`. dequantize: accept an input that is already
    quantized and dequantize it first. seed: of everything random.

    Raises RecipeError for an unknown or contradictory setting.
    """

    format: str = "int8_row"
    formats: tuple[str, ...] = ("int8_convrot", "float8_e4m3fn")
    target_gb: float | None = None
    target_share: float | None = None
    target_error: float | None = None
    profile: str = "auto"
    rounding: str = "nearest"
    svd: SvdSettings = field(default_factory=SvdSettings)
    calibrated: CalibratedSettings = field(default_factory=CalibratedSettings)
    scale: str = "absmax"
    rotation_group: int | str = 256
    overrides: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    fallback: str = SOURCE
    heuristics: bool = False
    embeddings: bool = False
    keep_dtype: str = SOURCE
    upgrade: str | None = None
    max_error: float | None = None
    bias_correction: str = OFF
    full_precision_matrix_mult: bool = False
    input_scale: str = OFF
    dequantize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        normalised = {
            "format": self.format if self.format == AUTO else _quantized(self.format),
            "formats": tuple(dict.fromkeys(map(_quantized, self.formats))),
            "overrides": tuple((check_pattern(pattern), format_name(fmt)) for pattern, fmt in self.overrides),
            "exclude": tuple(check_pattern(pattern) for pattern in self.exclude),
            "fallback": self.fallback if self.fallback == SOURCE else format_name(self.fallback),
            "upgrade": None if self.upgrade is None else _quantized(self.upgrade),
        }
        for name, value in normalised.items():
            object.__setattr__(self, name, value)
        _choose("rounding", self.rounding, ROUNDINGS)
        _choose("scale", self.scale, SCALES)
        _choose("rotation_group", self.rotation_group, (*GROUP_SIZES, AUTO))
        _choose("keep_dtype", self.keep_dtype, (SOURCE, *FLOATS))
        _choose("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        _choose("input_scale", self.input_scale, INPUT_SCALES)
        self._check_targets()
        if (self.upgrade is None) != (self.max_error is None):
            raise RecipeError("upgrade and max_error belong together: give both, or neither.")
        if self.max_error is not None and not self.max_error > 0:
            raise RecipeError(f"max_error is {self.max_error}; it is a relative error and must be above 0.")

    def _check_targets(self) -> None:
        targets = {name: value for name in TARGETS if (value := getattr(self, name)) is not None}
        if len(targets) > 1:
            raise RecipeError(f"{' and '.join(targets)} exclude each other; give one target.")
        for name, value in targets.items():
            if self.format != AUTO:
                raise RecipeError(f"{name} needs the format {AUTO}; {self.format} leaves nothing to choose.")
            if not value > 0:
                raise RecipeError(f"{name} is {value}; it must be above 0.")
        if self.format == AUTO and (not self.formats or self.upgrade is not None):
            raise RecipeError("The format auto needs at least one of formats to choose from, and takes no upgrade.")

    @property
    def candidates(self) -> tuple[str, ...]:
        """The formats that a layer may take if nothing else is said of it."""
        return self.formats if self.format == AUTO else (self.format,)

    @property
    def has_target(self) -> bool:
        return any(getattr(self, name) is not None for name in TARGETS)

    @property
    def learns(self) -> bool:
        """Whether anything is made from measured inputs; if not, a calibration only measures."""
        chosen = AUTO in (self.format, self.scale, self.rotation_group)
        measured = (self.bias_correction == "measured", self.input_scale != OFF, chosen)
        return self.rounding == "calibrated" or self.svd.metric == "inputs" or any(measured)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: lists, numbers, strings."""
        pairs = [list(pair) for pair in self.overrides]
        lists = {name: list(getattr(self, name)) for name in LISTS}
        return asdict(self) | lists | {"overrides": pairs}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """The recipe that `to_dict` (or its JSON) describes; missing fields take their defaults."""
        known = {f.name for f in fields(cls)}
        for name in data:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                raise RecipeError(f"Unknown recipe field '{name}'." + (f" Did you mean '{close[0]}'?" if close else ""))
        values = dict(data)
        try:
            for name, settings in (("svd", SvdSettings), ("calibrated", CalibratedSettings)):
                if name in values:
                    values[name] = settings(**values[name])
            if "overrides" in values:
                values["overrides"] = tuple((pattern, fmt) for pattern, fmt in values["overrides"])
            values |= {name: tuple(values[name]) for name in LISTS if name in values}
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"The recipe cannot be read: {error}.") from None

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a JSON file."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"The recipe file '{path}' cannot be read: {error.strerror}.") from None
        except ValueError:
            raise RecipeError(f"The recipe file '{path}' is not JSON.") from None
        if not isinstance(data, dict):
            raise RecipeError(f"The recipe file '{path}' must hold a JSON object.")
        return cls.from_dict(data)


def _quantized(name: str) -> str:
    full = format_name(name)
    if full not in FORMATS:
        raise RecipeError(f"'{name}' is a floating-point format; choose one of {', '.join(FORMATS)}.")
    return full


def _choose(name: str, value: object, options: tuple[object, ...]) -> None:
    if value not in options:
        raise RecipeError(f"{name} is '{value}'; choose one of {', '.join(map(str, options))}.")
