"""The committed key and shape lists of real models, as tools/architectures.py and tools/known_models.py wrote them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

DATA = Path(__file__).parents[2] / "data"
FOLDER, KNOWN_FOLDER = DATA / "architectures", DATA / "known"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a known model."""

    shape: tuple[int, ...]
    linear: bool
    """Whether ComfyUI puts it into a linear layer."""
    embedding: bool
    """Whether ComfyUI puts it into an embedding."""
    read: bool
    """Whether ComfyUI's detection reads its shape."""

    @property
    def size(self) -> int:
        return prod(self.shape)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def known_names() -> list[str]:
    """The models that ComfyUI knows and no profile describes."""
    return sorted(path.stem for path in KNOWN_FOLDER.glob("*.txt"))


@cache
def architecture(name: str) -> dict[str, Tensor]:
    """Key -> tensor of a whole model."""
    path = next(path for path in (FOLDER / f"{name}.txt", KNOWN_FOLDER / f"{name}.txt") if path.exists())
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: tensor for line in lines if not line.startswith("#") for key, tensor in _expand(line)}


def shapes(name: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + key: tensor.shape for key, tensor in architecture(name).items()}


def _expand(line: str) -> Iterator[tuple[str, Tensor]]:
    pattern, size, *rest = line.split(" ")
    flags = "".join(rest)
    shape = () if size == "scalar" else tuple(int(part) for part in size.split("x"))
    tensor = Tensor(shape=shape, linear="L" in flags, embedding="E" in flags, read="S" in flags)
    pieces = [_numbers(part[1:-1]) if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", pattern)]
    for choice in itertools.product(*pieces):
        yield "".join(choice), tensor


def _numbers(text: str) -> list[str]:
    spans = [[int(end) for end in span.split("-")] for span in text.split(",")]
    return [str(number) for span in spans for number in range(span[0], span[-1] + 1)]
