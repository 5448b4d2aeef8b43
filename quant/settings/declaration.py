"""The declaration of a setting: all that is known of it, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import RecipeError
from ..text import show_value
from .kinds import Choice, Invalid, Kind, Many

if TYPE_CHECKING:
    from .base import Settings

KEY = "setting"
"""Key of a field's metadata."""

Level = Literal["basic", "advanced", "expert"]
"""Who needs a setting. Nodes fold advanced settings away and leave expert settings out."""


@dataclass(frozen=True, kw_only=True)
class When:
    """What makes a setting matter: another setting, or a property of the settings, has one of some values."""

    setting: str
    """Full name of the other setting (``svd.optimizer``), or name of a property of `Settings`."""
    values: tuple[Any, ...] = ()
    """The values that make it matter; empty: any value but None and False."""
    implied: bool = False
    """Whether the option alone, without the other one, chooses the first of the values."""
    notice: str = ""
    """Kind of the notice that the setting does not matter, filled with the option; empty: ``option_unused``."""


ALWAYS = When(setting="")
"""For a setting of a section that matters even if the section does not."""


@dataclass(frozen=True)
class Alternatives:
    """Settings of which at most one may be given; a node shows them as one choice."""

    name: str
    """Name of the node's input."""
    help: str


@dataclass(frozen=True, kw_only=True)
class NodeInput:
    """How the input of a node differs from its setting."""

    name: str = ""
    """Name of the input, if not the name of the field."""
    default: Any = None
    """Initial value, if the setting's default is None."""
    empty: Any = None
    """The value that stands for None."""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    round: float | None = None
    omitted: tuple[Any, ...] = ()
    """Choices that the input does not offer."""
    choices: str = ""
    """The list that the input offers, for names that are looked up; see `nodes/recipe/inputs.py`."""
    label: str = ""
    """Name among `Alternatives`."""
    within: When | None = None
    """The choice that shows the input, if not the choice that makes the setting matter."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that is known of a setting."""

    kind: Kind
    help: str
    """Plain sentences, the same in the shell, in nodes and in the manual."""
    level: Level = "basic"
    group: str = ""
    """Heading in the command line's help."""
    when: When | None = None
    alternatives: Alternatives | None = None
    unset: str = ""
    """What None means, for a setting whose default it is."""
    bare: Any = None
    """Value of the option without a value."""
    later: bool = False
    """Whether the setting came after the first release; the node's input then comes after all older inputs."""
    node: NodeInput = NodeInput()
    name: str = ""
    """Full name, such as ``svd.lr``; filled in by `Settings.declarations`."""
    default: Any = None

    @property
    def field_name(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def repeated(self) -> bool:
        """Whether it is a list that a shell gives option by option, and a node line by line."""
        return isinstance(self.kind, Many) and self.kind.lines

    @property
    def explanations(self) -> Mapping[str, str]:
        """The choices that need an explanation."""
        options = self.kind.options if isinstance(self.kind, Choice) else {}
        return {str(value): text for value, text in options.items() if text}

    def check(self, value: Any) -> Any:
        """Return the value in its stored form. Raises RecipeError, in one sentence."""
        if value is None and self.default is None:
            return None
        try:
            return self.kind.check(value)
        except Invalid as error:
            raise self._error(error) from None

    def parse(self, text: str) -> Any:
        """Read a text. Raises RecipeError, in one sentence."""
        try:
            return self.kind.parse(text)
        except Invalid as error:
            raise self._error(error) from None

    def _error(self, error: Invalid) -> RecipeError:
        return RecipeError(f"{self.name}{error.place} is {show_value(error.value)}; {error.must}.")


@dataclass(frozen=True, kw_only=True)
class Section:
    """Settings that are a value of their own inside others."""

    cls: type[Settings]
    when: When
    group: str

    def adopt(self, inner: Setting) -> Setting:
        """A setting of the section as the outer settings see it."""
        when = self.when if inner.when is None else inner.when
        return replace(inner, when=None if when is ALWAYS else when, group=inner.group or self.group)


def setting(default: Any, kind: Kind, help: str, **details: Any) -> Any:
    """Declare a field of `Settings`.

    Args:
        default: The default; None makes the setting optional.
        kind: What values it has.
        help: Plain sentences about it.
        **details: More fields of `Setting`.
    """
    declaration = Setting(kind=kind, help=help, default=default, **details)
    return field(default=default, metadata={KEY: declaration})


def section(cls: type[Settings], *, when: When, group: str) -> dict[str, Section]:
    """Declare a field that holds settings of the class ``cls``: the metadata of the field."""
    return {KEY: Section(cls=cls, when=when, group=group)}
