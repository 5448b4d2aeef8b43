"""Reports as Markdown tables."""

from __future__ import annotations

import re

from calibrated_rounding.quant.layer.layer_errors import ErrorPair
from calibrated_rounding.quant.notices import notice
from calibrated_rounding.quant.reports.markdown import LEGEND, to_markdown
from calibrated_rounding.tests.quant.reports.test_report import kept, layer, report


def cells_of(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_every_layer_is_one_row_of_a_table() -> None:
    made = report(layer("a|b"), layer("c"), kept=[kept("c.bias", (1,))])
    total, _, *lines, note = to_markdown(made).splitlines()
    assert total == f"**{made.summary()}**"
    titles, rule, *layers = [cells_of(row) for row in lines if row.startswith("|")]
    assert {len(row) for row in (titles, rule, *layers)} == {len(titles)}
    assert all(set(cell) <= set("-:") for cell in rule)
    assert [row[0] for row in layers] == ["a\\|b", "c"]
    assert note.startswith("- kept: ")


def test_nearest_stands_beside_other_rounding_only() -> None:
    rounded = to_markdown(report(layer("a", output_w8a8=ErrorPair(0.1, 0.2)), layer("b")))
    assert LEGEND in rounded and "10.00% (20.00%)" in rounded
    assert LEGEND not in to_markdown(report(layer("a", weight=ErrorPair(0.01, 0.01))))


def test_notes_have_a_column_only_if_there_are_some() -> None:
    assert "notes" not in to_markdown(report(layer("a")))
    padded = to_markdown(report(layer("a", notice("padded", rows=64, columns=64)))).splitlines()
    assert cells_of(padded[2])[-1] == "notes" and "64" in cells_of(padded[4])[-1]
