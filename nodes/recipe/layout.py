"""How a node arranges the settings of a recipe: which choice shows which inputs.

Knows the structure of declarations only: no single setting, and no ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...quant.planning.recommendation import PRESET, RECOMMENDED
from ...quant.recipe import Recipe
from ...quant.settings import Alternatives, Setting, When
from ...quant.settings.kinds import Choice, Real, Whole

FORMAT = "format"
RECOMMENDED_HELP = (
    "How weights are stored.",
    f"{RECOMMENDED}: chosen for this machine, the model and the calibration, with the rounding",
)
NONE = "none"
"""The option of a choice that leaves a setting without a value."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An input of a node."""

    name: str
    help: str
    setting: Setting | None
    """None for the choice between alternatives."""
    options: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    """Inputs that each option of a choice shows, the default first; empty if no option shows anything."""
    optional: bool = False
    """Whether the node runs without it."""
    advanced: bool = False
    """Whether it is folded away."""


def arrange(*, later: bool = False) -> tuple[Entry, ...]:
    """The inputs that are always shown, of the first release or of later ones."""
    return tuple(entry for entry in _arrange_option() if (entry.setting is not None and entry.setting.later) == later)


def recommend_first(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Offer a recommendation as the first of the formats, with its presets."""
    return tuple(_with_recommendation(entry) if entry.name == FORMAT else entry for entry in entries)


def _with_recommendation(entry: Entry) -> Entry:
    _, *lines = entry.help.split("\n")
    options = {RECOMMENDED: (_make_entry(PRESET, top=False),), **entry.options}
    return replace(entry, help="\n".join([*RECOMMENDED_HELP, *lines]), options=options)


def list_options(setting: Setting) -> list[str]:
    """The options of a choice, the default first."""
    assert isinstance(setting.kind, Choice)
    names = [str(value) for value in setting.kind.options if value not in setting.node.omitted]
    if setting.default is None:
        return [NONE, *names]
    return sorted(names, key=lambda name: name != str(setting.default))


def describe_number(setting: Setting) -> dict[str, Any]:
    """Initial value (``default``), ``min``, ``max``, ``step`` and ``round`` of a number."""
    kind, node = setting.kind, setting.node
    assert isinstance(kind, (Whole, Real))
    lowest = kind.minimum if isinstance(kind, Whole) else kind.above
    details = {
        "default": next(value for value in (setting.default, node.default, node.empty) if value is not None),
        "min": lowest if node.minimum is None else node.minimum,
        "max": kind.maximum if node.maximum is None else node.maximum,
        "step": node.step,
        "round": node.round,
    }
    return {name: value for name, value in details.items() if value is not None}


def _arrange_option(parent: Setting | None = None, option: str = NONE) -> tuple[Entry, ...]:
    """The inputs that an option of the parent's choice shows; without a parent, those that are always shown."""
    entries: dict[str, Entry] = {}
    settings = [setting for setting in Recipe.declarations().values() if _is_shown(setting, parent, option)]
    for setting in settings:
        if setting.alternatives is None:
            entry = _make_entry(setting, top=parent is None)
        else:
            among = [other for other in settings if other.alternatives is setting.alternatives]
            entry = _make_choice(setting.alternatives, among)
        entries[entry.name] = entry
    return tuple(entries.values())


def _is_shown(setting: Setting, parent: Setting | None, option: str) -> bool:
    choice, when = _find_choice(setting)
    if setting.level == "expert" or choice != parent:
        return False
    return choice is None or when is None or (option in when.values if when.values else option != NONE)


def _find_choice(setting: Setting) -> tuple[Setting | None, When | None]:
    """The choice that shows a setting and the condition for it.

    Saved workflows hold values by position, so a later setting does not appear among the inputs of an older choice,
    unless it brings an option of its own.
    """
    when = setting.node.within or setting.when
    choice = None if when is None else Recipe.declarations().get(when.setting)
    if choice is not None and setting.later and not (choice.later or setting.alternatives):
        return None, when
    return choice, when


def _make_choice(alternatives: Alternatives, among: Sequence[Setting]) -> Entry:
    options = {setting.node.label: (_make_entry(setting, top=False),) for setting in among}
    return Entry(name=alternatives.name, help=alternatives.help, setting=None, options={NONE: ()} | options)


def _make_entry(setting: Setting, *, top: bool) -> Entry:
    names = list_options(setting) if isinstance(setting.kind, Choice) else []
    options = {name: _arrange_option(setting, name) for name in names}
    folded = setting.level != "basic"
    shows = any(options.values())
    return Entry(
        name=setting.node.name or setting.field_name,
        help=_write_help(setting),
        setting=setting,
        options=options if shows else {},
        optional=top and (folded or setting.later),
        advanced=folded and not shows,
    )


def _write_help(setting: Setting) -> str:
    lines = [f"{value}: {text}" for value, text in setting.explanations.items() if value in list_options(setting)]
    if setting.node.empty is not None:
        lines.append(f"{setting.node.empty:g}: {setting.unset}")
    choice, when = _find_choice(setting)
    sentences = [setting.help, *(["One per line."] if setting.repeated else [])]
    if choice is None and when is not None and when.values:
        sentences.append(f"With {when.setting} {' or '.join(map(str, when.values))}.")
    return "\n".join([" ".join(sentences), *lines])
