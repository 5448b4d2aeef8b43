"""How this machine runs formats, in the words of `quant.planning.machine`: of the chosen ones, and of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...quant import QuantError
from ...quant.formats import Format
from ...quant.notices import Notice, notice
from ...quant.planning.machine import Machine, leave_out_unusable, note_ways
from ...quant.planning.recommendation import list_formats
from ..host.machine import describe_machine
from ..recipe.inputs import nest_values
from ..recipe.values import choose_joint_recipe, make_recipe


def describe_formats(*, weight_only: bool) -> dict[str, Any]:
    """Every format on this machine, as the page lists them.

    Args:
        weight_only: As `Plan.weight_only`.

    Returns:
        ``device``: the machine's title. ``formats``: rows of name, bytes of a weight, PSNR of latents that the shipped
        model samples (None if it was not measured), and the sentences of `note_ways`.
    """
    machine = _describe_machine(weight_only=weight_only)
    rows = [
        {
            "name": row.name,
            "bytes": row.bytes_per_weight,
            "nearest": row.closeness and row.closeness.nearest,
            "calibrated": row.closeness and row.closeness.calibrated,
            "notices": [entry.to_dict() for entry in note_ways([row.name], machine)],
        }
        for row in list_formats(machine)
    ]
    return {"device": machine.title, "formats": rows}


def note_formats(formats: Iterable[Format], *, weight_only: bool, full_precision: bool) -> list[Notice]:
    """How this machine runs formats. Memory alone is a warning where the user could have had more.

    Args:
        formats: The chosen ones.
        weight_only: As `Plan.weight_only`.
        full_precision: As `Recipe.full_precision_matrix_mult`.
    """
    machine = _describe_machine(weight_only=weight_only or full_precision)
    notices = note_ways([fmt.name for fmt in formats], machine)
    expected = weight_only or full_precision
    return notices if expected else [*map(_warn_of_memory, notices)]


def check_together(values: Mapping[str, Any] | None) -> list[Notice]:
    """What Quantize to a Size should say before its run.

    Args:
        values: Of the linked recipe node; None: no recipe is linked.
    """
    try:
        recipe = choose_joint_recipe(None if values is None else make_recipe(nest_values(values)), calibrated=False)
    except QuantError as error:
        return [notice("refused", text=str(error))]
    recipe, left_out = leave_out_unusable(recipe, describe_machine(), weight_only=False)
    ways = note_ways(recipe.candidates, describe_machine())
    return [*ways, notice("encoder_saves_memory_here"), *left_out]


def _describe_machine(*, weight_only: bool) -> Machine:
    machine = describe_machine()
    return machine.without_products() if weight_only else machine


def _warn_of_memory(entry: Notice) -> Notice:
    return Notice(entry.kind, "warning", entry.values) if entry.kind == "saves_memory_here" else entry
