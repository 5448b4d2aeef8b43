"""Tensor names as ComfyUI's loaders see them: which prefix is stripped, and names without their numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

Shapes = Mapping[str, tuple[int, ...]]

STRIPPED_PREFIXES = ("model.diffusion_model.", "model.model.", "net.")
"""ComfyUI strips the one of these that most names begin with (comfy/model_detection.py, 0.29 to 0.38) ..."""
FEWEST_NAMES = 6
"""... if so many do, ..."""
LAST_PREFIX = "model."
"""... and this one otherwise."""

MOST_NAMES = 5000
"""Generalized names that are looked at, at most; the largest models have about 600."""
LONGEST_NAME = 400
"""Characters of a name that is looked at, at most."""

NUMBER = "#"
_NUMBER = re.compile(r"(?<![^.])(block)?\d+(?![^.])")
_BLOCKS = re.compile(r"(blocks?|layers?|refiner|encoders|h)$")


def loader_prefix(names: Iterable[str]) -> str:
    """The prefix that ComfyUI's loaders of diffusion models strip; names without it are not read by them.

    Empty: nothing is stripped. Text encoders are read without stripping anything.
    """
    names = list(names)
    counts = {prefix: sum(name.startswith(prefix) for name in names) for prefix in STRIPPED_PREFIXES}
    most = max(counts, key=lambda prefix: counts[prefix])
    if counts[most] >= FEWEST_NAMES:
        return most
    return LAST_PREFIX if any(name.startswith(LAST_PREFIX) for name in names) else ""


def generalize(name: str) -> str:
    """The name with every number between dots written as ``#``, Cosmos' ``block12`` as ``block#``.

    >>> generalize("blocks.12.attn1.to_out.0.weight")
    'blocks.#.attn1.to_out.#.weight'
    """
    return _NUMBER.sub(lambda match: f"{match[1] or ''}{NUMBER}", name)


@dataclass(frozen=True)
class Names:
    """The names of a file's tensors, with their shapes."""

    shapes: Shapes
    file: str = ""
    """Name of the file."""

    @cached_property
    def examples(self) -> dict[str, str]:
        """A name for each generalized one; so few of a hostile file that no search in them takes long."""
        examples: dict[str, str] = {}
        for name in self._short:
            if len(examples) == MOST_NAMES:
                break
            examples[generalize(name)] = name
        return examples

    @cached_property
    def text(self) -> str:
        """The generalized names, one a line."""
        return "\n".join(name.replace("\n", " ") for name in self.examples)

    def under(self, prefix: str) -> Names:
        """The names that begin with ``prefix``, without it."""
        inside = {n.removeprefix(prefix): shape for n, shape in self.shapes.items() if n.startswith(prefix)}
        return Names(inside, self.file)

    def find_prefixes(self, trace: str) -> list[str]:
        """Every prefix ("" or ending in a dot) under which a generalized name lies, the shortest first."""
        depth = trace.count(".") + 1
        found = [name for general, name in self.examples.items() if f".{general}".endswith(f".{trace}")]
        prefixes = {"".join(f"{part}." for part in name.split(".")[:-depth]) for name in found}
        return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))

    def find_first_gap(self, *, starts_only: bool = False) -> str | None:
        """The first numbered block that is missing before others, such as ``blocks.0``; None: there are no gaps.

        ``starts_only``: only where the first blocks are missing.
        """
        for group, numbers in self._numbered_blocks.items():
            missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
            if missing < (1 if starts_only else len(numbers)):
                return f"{group}.{missing}"
        return None

    @cached_property
    def _short(self) -> list[str]:
        return [name for name in self.shapes if len(name) <= LONGEST_NAME]

    @cached_property
    def _numbered_blocks(self) -> Mapping[str, set[int]]:
        """The numbers of the blocks in each group of them, such as ``blocks``; a block holds modules of its own."""
        groups: dict[str, set[int]] = defaultdict(set)
        for name in self._short:
            parts = name.split(".")
            for i, part in enumerate(parts[1:-2], start=1):
                number = part.removeprefix("block")
                if number.isdecimal() and _BLOCKS.search(parts[i - 1]):
                    groups[".".join(parts[:i])].add(int(number))
        return groups
