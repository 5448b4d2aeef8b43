"""The kinds of values that a setting can have: what is accepted, how text is read, how values are listed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..patterns import find_fault
from ..text import show_value


class Invalid(ValueError):
    """A value that its kind refuses.

    Args:
        value: The refused part of the value.
        must: The clause that says what it must be.
        place: Index of the refused part, such as ``[2]``; empty for the whole value.
    """

    def __init__(self, value: object, must: str, place: str = "") -> None:
        super().__init__(f"{show_value(value)}: {must}")
        self.value, self.must, self.place = value, must, place


class Kind:
    """A kind of values; this one is text."""

    @property
    def metavar(self) -> str:
        """A value in usage messages."""
        return "NAME"

    @property
    def values(self) -> str:
        """The accepted values, in a few words of Markdown."""
        return "a name"

    def check(self, value: Any) -> Any:
        """Return the value in its stored form. Raises Invalid."""
        if not isinstance(value, str):
            raise Invalid(value, "it must be a name")
        return value

    def parse(self, text: str) -> Any:
        """Read a text; `check` refuses what does not depend on the reading. Raises Invalid."""
        return text

    def format(self, value: Any) -> str:
        """Write a value as text."""
        return str(value)


@dataclass(frozen=True)
class Name(Kind):
    """A name that is looked up where it is used."""

    values: str = "a name"


class Switch(Kind):
    """True or false."""

    values = "on, off"

    def check(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise Invalid(value, "it must be true or false")
        return value

    def format(self, value: Any) -> str:
        return "on" if value else "off"


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from ``minimum`` to ``maximum``."""

    minimum: int = -(2**63)
    maximum: int = 2**63 - 1

    metavar = "N"

    @property
    def values(self) -> str:
        if self == Whole():
            return "a whole number of 64 bits"
        return f"a whole number from {self.minimum} to {self.maximum}"

    def check(self, value: Any) -> Any:
        if not _is_whole(value) or not self.minimum <= value <= self.maximum:
            raise Invalid(value, f"it must be {self.values}")
        return value

    def parse(self, text: str) -> Any:
        try:
            return int(text)
        except ValueError:
            raise Invalid(text, "it must be a whole number") from None


@dataclass(frozen=True)
class Real(Kind):
    """A finite number above ``above`` and at most ``maximum``, or below ``below``."""

    above: float
    maximum: float = math.inf
    below: float = math.inf

    metavar = "X"

    @property
    def values(self) -> str:
        ends = {"above": self.above, "at most": self.maximum, "below": self.below}
        return "a number " + " and ".join(f"{word} {end:g}" for word, end in ends.items() if end < math.inf)

    def check(self, value: Any) -> Any:
        number = _as_float(value)
        if not (self.above < number <= self.maximum and number < self.below):
            raise Invalid(value, f"it must be {self.values}")
        return value

    def parse(self, text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            raise Invalid(text, "it must be a number") from None

    def format(self, value: Any) -> str:
        return f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class Choice(Kind):
    """One of a few names or numbers."""

    options: Mapping[Any, str]
    """Every value with its explanation, which may be empty."""
    summary: str = ""
    """How the values are listed, if not one by one."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of values."""
    misfits: Mapping[str, str] = field(default_factory=dict)
    """Values of other settings that a user may try here, and what they are."""

    @property
    def metavar(self) -> str:
        return "NAME" if self.summary else f"{{{','.join(map(str, self.options))}}}"

    @property
    def values(self) -> str:
        return self.summary or ", ".join(f"`{value}`" for value in self.options)

    def check(self, value: Any) -> Any:
        full = self.aliases.get(value, value) if isinstance(value, str) else value
        if any(type(option) is type(full) and option == full for option in self.options):
            return full
        names = [*map(str, self.options)]
        must, hint = f"choose one of {', '.join(names)}", ""
        if isinstance(full, str) and full in self.misfits:
            must = f"that is {self.misfits[full]}, so {must}"
        elif isinstance(full, str) and self.summary:
            close = get_close_matches(full, [*names, *self.aliases], n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise Invalid(full, must + hint)

    def parse(self, text: str) -> Any:
        return next((option for option in self.options if str(option) == text), text)


class Pattern(Kind):
    """A regular expression."""

    metavar = "REGEX"
    values = "a regular expression"

    def check(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise Invalid(value, "it must be a regular expression")
        fault = find_fault(value)
        if fault:
            raise Invalid(value, f"it must be a regular expression ({fault})")
        return value


@dataclass(frozen=True)
class Pair(Kind):
    """Two values, written ``FIRST=SECOND``."""

    first: Kind
    second: Kind
    written: str

    @property
    def metavar(self) -> str:
        return self.written

    @property
    def values(self) -> str:
        return f"`{self.written}`"

    def check(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise Invalid(value, f"it must be a pair, {self.written}")
        return _check_item(self.first, value[0], 0), _check_item(self.second, value[1], 1)

    def parse(self, text: str) -> Any:
        first, equals, second = text.rpartition("=")
        if not equals:
            raise Invalid(text, f"it must be {self.written}")
        return self.first.parse(first.strip()), self.second.parse(second.strip())

    def format(self, value: Any) -> str:
        return f"{self.first.format(value[0])}={self.second.format(value[1])}"


@dataclass(frozen=True)
class Many(Kind):
    """A list of values of a kind."""

    item: Kind
    lines: bool = False
    """Whether a text has one item a line, and an option is repeated for each; if not, commas separate them."""

    @property
    def metavar(self) -> str:
        return self.item.metavar if self.lines else f"{self.item.metavar},{self.item.metavar}"

    @property
    def values(self) -> str:
        return self.item.values if self.lines else f"{self.item.values}, or several with commas"

    def check(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise Invalid(value, "it must be a list")
        items = [_check_item(self.item, item, place) for place, item in enumerate(value)]
        return tuple(items if self.lines else dict.fromkeys(items))

    def parse(self, text: str) -> Any:
        items = text.splitlines() if self.lines else re.split(r"[\s,;]+", text)
        return tuple(self.item.parse(item.strip()) for item in items if item.strip())

    def format(self, value: Any) -> str:
        return ("\n" if self.lines else ", ").join(map(self.item.format, value))


def _check_item(kind: Kind, item: Any, place: int) -> Any:
    try:
        return kind.check(item)
    except Invalid as error:
        raise Invalid(error.value, error.must, f"[{place}]{error.place}") from None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    """NaN for what is not a finite number, so that comparisons with it are false."""
    try:
        number = float(value) if isinstance(value, float) or _is_whole(value) else math.nan
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan
