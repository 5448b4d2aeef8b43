"""The base of dataclasses whose fields are declared settings: checks, names and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

from ..errors import RecipeError
from ..text import show_value
from .declaration import KEY, Alternatives, Section, Setting, When

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of the dataclasses whose fields are declared settings. Raises RecipeError for values that do not fit."""

    prefix: ClassVar[str] = ""
    """What full names begin with: the name of the section and a dot."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, declared = getattr(self, entry.name), entry.metadata[KEY]
            if not isinstance(declared, Section):
                checked = self.declarations()[f"{self.prefix}{entry.name}"].check(value)
                object.__setattr__(self, entry.name, checked)
            elif not isinstance(value, declared.cls):
                raise RecipeError(f"{entry.name} is {show_value(value)}; it must be {declared.cls.__name__}.")
        self._check_alternatives()

    def _check_alternatives(self) -> None:
        names: dict[Alternatives, list[str]] = {}
        for name, declared in self.declarations().items():
            if declared.alternatives and self.get(name) is not None:
                names.setdefault(declared.alternatives, []).append(name)
        for alternatives, group in names.items():
            if len(group) > 1:
                raise RecipeError(f"{' and '.join(group)} exclude each other; give one {alternatives.name}.")

    @classmethod
    def declarations(cls) -> Mapping[str, Setting]:
        """Every setting by its full name, in the order of declaration, with the settings of all sections."""
        return _declarations(cls)  # type: ignore[arg-type]  # mypy takes no dataclass for hashable

    def get(self, name: str) -> Any:
        """The value of a setting by its full name, or of a property."""
        return attrgetter(name.removeprefix(self.prefix))(self)

    @classmethod
    def conditions(cls, declared: Setting | None) -> Iterator[When]:
        """Everything that must hold for a setting to matter."""
        while declared is not None and declared.when is not None:
            yield declared.when
            declared = cls.declarations().get(declared.when.setting)

    def find_unmet(self, declared: Setting) -> When | None:
        """The condition that keeps a setting from mattering; None if it matters."""
        return next((when for when in self.conditions(declared) if not self._holds(when)), None)

    def _holds(self, when: When) -> bool:
        value = self.get(when.setting)
        return value in when.values if when.values else value not in (None, False)

    def with_values(self: S, values: Mapping[str, Any]) -> S:
        """A copy with other values, by full name."""
        own: dict[str, Any] = {}
        inner: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            part, dot, rest = name.removeprefix(self.prefix).partition(".")
            if dot:
                inner.setdefault(part, {})[rest] = value
            else:
                own[part] = value
        return replace(
            self, **own, **{part: replace(getattr(self, part), **changes) for part, changes in inner.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them: objects, lists, numbers, strings."""
        return {entry.name: _to_json(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_dict(cls: type[S], data: Any) -> S:
        """Read what `to_dict` (or its JSON) gives; missing settings take their defaults. Raises RecipeError."""
        if not isinstance(data, dict):
            name = cls.prefix.rstrip(".") or "The recipe"
            raise RecipeError(f"{name} is {show_value(data)}; it must be an object of settings and their values.")
        known = {entry.name: entry.metadata[KEY] for entry in fields(cls)}
        values = {}
        for name, value in data.items():
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f" Did you mean '{cls.prefix}{close[0]}'?" if close else ""
                raise RecipeError(f"Unknown recipe field {show_value(f'{cls.prefix}{name}')}.{hint}")
            declared = known[name]
            values[name] = declared.cls.from_dict(value) if isinstance(declared, Section) else value
        return cls(**values)


@cache
def _declarations(cls: type[Settings]) -> Mapping[str, Setting]:
    result: dict[str, Setting] = {}
    for entry in fields(cls):
        declared = entry.metadata[KEY]
        if isinstance(declared, Section):
            result |= {name: declared.adopt(inner) for name, inner in declared.cls.declarations().items()}
        else:
            name = f"{cls.prefix}{entry.name}"
            result[name] = replace(declared, name=name)
    return result


def _to_json(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value
