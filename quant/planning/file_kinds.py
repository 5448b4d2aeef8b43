"""Kinds of files, as two tables beside this module describe them.

``known.toml`` has the models whose names ComfyUI's loaders know, ``foreign.toml`` the files that they do not read as
quantized models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .names import Names
from .profiles import Kind, Signature, read_signature, read_toml

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a quantized file with these names would not be read as one."""

    title: str
    """Kind of the file, for people to read."""
    reason: str
    way_out: str

    def __str__(self) -> str:
        return f"This is {self.title}: {self.reason}; {self.way_out}."


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model whose names ComfyUI's loaders know."""

    title: str
    kind: Kind
    trace: tuple[str, ...]
    """Generalized names that tell it by any part of its blocks."""
    whole: tuple[Signature, ...]
    """One of them fits a complete file."""

    def home(self, stripped: str) -> str:
        """The prefix that its loader strips, if the loader of diffusion models strips ``stripped``."""
        return stripped if self.kind == "diffusion" else ""

    def find_prefixes(self, names: Names) -> list[str]:
        """The prefixes under which at least a part of it lies."""
        return [prefix for trace in self.trace for prefix in names.find_prefixes(trace)]

    def is_whole(self, names: Names, prefix: str = "") -> bool:
        return any(signature.fits(names.shapes, prefix) for signature in self.whole)

    def find_missing(self, names: Names) -> str | None:
        """A tensor, or a numbered block, that the model lacks."""
        if self.is_whole(names):
            return names.find_first_gap()
        missing = ([key for key in signature.all if key not in names.shapes] for signature in self.whole)
        return min(filter(None, missing), key=len)[0]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Signs of a kind of file in its tensors' names; ``foreign.toml`` explains the fields."""

    all: tuple[re.Pattern[str], ...] = ()
    none: tuple[re.Pattern[str], ...] = ()
    every: re.Pattern[str] | None = None
    most: re.Pattern[str] | None = None
    file: re.Pattern[str] | None = None
    exact: Signature

    def fits(self, names: Names) -> bool:
        lines = list(names.examples)
        return (
            all(pattern.search(names.text) for pattern in self.all)
            and not any(pattern.search(names.text) for pattern in self.none)
            and (self.every is None or (bool(lines) and all(map(self.every.match, lines))))
            and (self.most is None or 2 * sum(map(bool, map(self.most.search, lines))) > len(lines))
            and (self.file is None or self.file.match(names.file) is not None)
            and self.exact.fits(names.shapes, "")
        )


@dataclass(frozen=True, kw_only=True)
class ForeignKind:
    """A kind of file that ComfyUI's loaders do not read as a quantized model."""

    obstacle: Obstacle
    early: bool
    signs: tuple[Sign, ...]

    def fits(self, names: Names) -> bool:
        return any(sign.fits(names) for sign in self.signs)


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The models of ``known.toml``."""
    return tuple(
        KnownModel(
            title=entry["title"],
            kind=entry["kind"],
            trace=tuple(entry["trace"]),
            whole=tuple(map(read_signature, entry["whole"])),
        )
        for entry in read_toml(FOLDER / "known.toml")["model"]
    )


@cache
def foreign_kinds() -> tuple[ForeignKind, ...]:
    """The kinds of ``foreign.toml``, in its order."""
    data = read_toml(FOLDER / "foreign.toml")
    return tuple(
        ForeignKind(
            obstacle=Obstacle(title=entry["title"], **data["groups"][entry["group"]]),
            early=entry.get("early", False),
            signs=tuple(map(_read_sign, entry["signs"])),
        )
        for entry in data["kind"]
    )


def _read_sign(entry: Mapping[str, Any]) -> Sign:
    exact = {"all": entry.get("keys", ()), "none": entry.get("no_keys", ()), "rows": entry.get("rows", {})}
    return Sign(
        all=tuple(map(_compile, entry.get("all", ()))),
        none=tuple(map(_compile, entry.get("none", ()))),
        every=_compile(entry["every"]) if "every" in entry else None,
        most=_compile(entry["most"]) if "most" in entry else None,
        file=_compile(entry["file"]) if "file" in entry else None,
        exact=read_signature(exact),
    )


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE | re.IGNORECASE)
