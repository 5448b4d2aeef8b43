"""Terminal output that the commands share: one line for an error, and no control characters from a file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn, TextIO

from ..text import printable

PROGRAM = "calibrated-rounding"


class UsageError(Exception):
    """The command line itself cannot be understood."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, and names the closest option to one that does not exist."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Parse given options by destination; others are absent, `_` and `-` in names are one."""
        found, unknown = self.parse_known_args([dashed(arg) for arg in argv])
        if unknown:
            close = get_close_matches(unknown[0], self._option_string_actions, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            self.error(f"Nothing is called {unknown[0]} here.{hint}")
        return {name: value for name, value in vars(found).items() if value is not None}

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def dashed(arg: str) -> str:
    """An argument with `-` for every `_` in its name, if it is a long option; its value stays."""
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value if arg.startswith("--") else arg


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines to stdout (or ``stream``). Names from files in them must be escaped already, as `table` does."""
    say_lines(text.split("\n"), stream)


def say_lines(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """Print each text as one line, whatever names from files are in it."""
    print("\n".join(map(printable, lines)), file=stream or sys.stdout)


def fail(problem: object) -> None:
    """One line on stderr that says what went wrong."""
    print(f"error: {printable(str(problem))}", file=sys.stderr)


def tolerate_any_text() -> None:
    """Let a terminal that cannot show a character get an escape instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def abandon_output() -> None:
    """After a reader went away: send what is still buffered nowhere, so that leaving Python is silent."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a stream without a descriptor has nothing to lose
                os.dup2(nowhere.fileno(), stream.fileno())
