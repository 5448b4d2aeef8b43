"""The machine that a model will run on, as far as it decides the format: what a card multiplies, and its memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..formats import FORMATS, Format
from ..notices import Notice, notice, render
from ..recipe import Recipe

Capability = tuple[int, int]
Way = Literal["8 bits", "4 bits", "memory"]
"""How a card runs a format: multiplied in 8 or 4 bits, or dequantized and multiplied in 16, which only saves memory."""

WAYS: Mapping[Way, tuple[str, Mapping[str, int]]] = {
    "8 bits": ("runs_here", {"bits": 8}),
    "4 bits": ("runs_here", {"bits": 4}),
    "memory": ("saves_memory_here", {}),
}
"""The kind and the values of the notice about formats that run in a way: the one wording of it."""

INT8: Capability = (7, 5)
"""Has INT8 alone. ComfyUI computes INT8 on the CPU, too."""

NEEDED: Mapping[str, Capability] = {
    **dict.fromkeys(("int8_tensorwise", "asym_w4a8_int8", "w6a8_int8"), INT8),
    "int8_blockwise": (8, 0),
    "float8_e4m3fn": (8, 9),
    "mxfp8": (10, 0),
    "nvfp4": (10, 0),
}
"""Marker's format -> the first compute capability of NVIDIA whose products ComfyUI computes in it."""

PRODUCTS_OF_4_BITS = ("nvfp4",)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A card, with the ComfyUI on it."""

    title: str
    memory: int | None = None
    """Bytes of the card, or of the computer if it has no card; None: unknown."""
    computes: frozenset[str] = frozenset()
    """Formats that it multiplies without dequantizing."""
    loads: frozenset[str] = frozenset(FORMATS)
    """Formats that its ComfyUI loads."""

    def runs(self, fmt: Format) -> Way:
        """How the machine runs layers in a format."""
        if fmt.needs_full_precision or fmt.name not in self.computes:
            return "memory"
        return "4 bits" if fmt.name in PRODUCTS_OF_4_BITS else "8 bits"

    def rounds_inputs(self, fmt: Format) -> bool:
        """Whether it rounds a layer's inputs with one scale for the whole tensor, which loses the most."""
        return fmt.static_input and fmt.name in self.computes

    def without_products(self) -> Machine:
        """The machine as it runs text encoders, which ComfyUI always dequantizes."""
        return replace(self, computes=frozenset())


def note_way(way: Way, names: Iterable[str] = ()) -> Notice:
    """The sentence about formats that the machine runs in a way."""
    kind, values = WAYS[way]
    return notice(kind, None, format=", ".join(names), **values)


def word_way(way: Way) -> str:
    """The words of `note_way` for a table: without formats, brackets and full stop."""
    return render(note_way(way)).partition("(")[0].strip(": .")


def note_ways(names: Iterable[str], machine: Machine) -> list[Notice]:
    """How a machine runs formats: a sentence for each way, in the order of the first formats.

    Formats that its ComfyUI does not load have a sentence of their own. Formats of this pack count as loaded, because
    the pack has a loader for them.
    """
    ways: dict[Way | None, list[str]] = {}
    for name in names:
        loads = name in machine.loads or not FORMATS[name].stock
        ways.setdefault(machine.runs(FORMATS[name]) if loads else None, []).append(name)
    unknown = ways.pop(None, [])
    notices = [note_way(way, found) for way, found in ways.items() if way is not None]
    return [*notices, *([notice("format_unknown_here", format=", ".join(unknown))] if unknown else [])]


def leave_out_unusable(recipe: Recipe, machine: Machine, *, weight_only: bool) -> tuple[Recipe, list[Notice]]:
    """Leave out of ``auto`` what cannot be loaded, and 4-bit products that the card lacks.

    The errors of formats with 4-bit products are measured with inputs in 4 bits, as a card that has the products rounds
    them; where it lacks them, inputs stay in 16 bits and nothing is faster.

    Args:
        recipe: It stays as it is if it names a format, or if no format would be left.
        machine: The machine that the result will run on.
        weight_only: As `Plan.weight_only`: the card's products do not matter.

    Returns:
        The recipe, and a notice for each reason to leave formats out.
    """
    lacking = () if weight_only else (name for name in PRODUCTS_OF_4_BITS if name not in machine.computes)
    left_out = {
        "candidates_unknown": [name for name in recipe.open_formats if name not in machine.loads],
        "candidates_emulated": [name for name in lacking if name in recipe.open_formats],
    }
    notices = list[Notice]()
    for kind, names in left_out.items():
        smaller = recipe.without_formats(names)
        notices += [notice(kind, formats=names)] if smaller != recipe else []
        recipe = smaller
    return recipe, notices


@dataclass(frozen=True)
class Card:
    """Cards of one generation."""

    names: str
    capability: Capability


CARDS = (
    Card("RTX 20", (7, 5)),
    Card("RTX 30, A100", (8, 0)),
    Card("RTX 40, L4, H100", (8, 9)),
    Card("RTX 50, B200", (10, 0)),
)
"""NVIDIA's cards by what they multiply."""


def list_products(capability: Capability) -> frozenset[str]:
    """The formats that a card of NVIDIA multiplies without dequantizing."""
    return frozenset(
        name
        for name, fmt in FORMATS.items()
        if capability >= NEEDED.get(fmt.comfyui_name, (99, 0)) and not fmt.needs_full_precision
    )


def detect_machine(device: str, loads: Iterable[str] = FORMATS) -> Machine:
    """Describe the machine from PyTorch.

    Args:
        device: Device of PyTorch that models run on.
        loads: Formats that ComfyUI loads.
    """
    where = torch.device(device)
    if where.type == "cuda" and torch.version.cuda is not None:
        properties = torch.cuda.get_device_properties(where)
        computes = list_products((properties.major, properties.minor))
        return Machine(title=properties.name, memory=properties.total_memory, computes=computes, loads=frozenset(loads))
    if where.type == "cpu":
        return Machine(title="CPU", memory=_computer_memory(), computes=list_products(INT8), loads=frozenset(loads))
    return Machine(title=where.type.upper(), loads=frozenset(loads))


def _computer_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
