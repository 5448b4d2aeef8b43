"""Tables as columns: nothing is lost but digits that nobody sees, and they stay small."""

from __future__ import annotations

import json
from typing import Any

from calibrated_rounding.nodes.page.columns import columns
from calibrated_rounding.nodes.page.shown import packed
from calibrated_rounding.quant import LayerReport, Report
from hypothesis import given
from hypothesis import strategies as st

SIMPLE = st.one_of(st.text(max_size=5), st.integers(-9, 9), st.none(), st.booleans())
VALUES = st.one_of(SIMPLE, st.lists(st.integers(), max_size=2))
ROWS = st.lists(st.fixed_dictionaries({"a": VALUES, "b": VALUES}), min_size=1)


def spread(column: Any) -> list[Any]:
    """What web/columns.mjs does."""
    return column if isinstance(column, list) else [column["values"][place] for place in column["index"]]


@given(ROWS)
def test_rows_come_back(rows: list[dict[str, Any]]) -> None:
    made = json.loads(json.dumps(columns(rows)))
    assert [dict(zip(made, values, strict=True)) for values in zip(*map(spread, made.values()), strict=True)] == rows


def test_numbers_keep_six_digits() -> None:
    assert columns([{"error": 0.012345678901}, {"error": 1234567.8}]) == {"error": [0.0123457, 1234570.0]}


def test_no_rows_make_no_columns() -> None:
    assert columns([]) == {}


def test_a_thousand_layers_are_a_small_message() -> None:
    report = Report("flux", True, {}, {})
    for i in range(1000):
        digits = (i * 0.6180339887498949 % 1, i * 0.7548776662466927 % 1)
        report.layers.append(
            LayerReport(
                name=f"double_blocks.{i}.img_attn.qkv",
                shape=(9216, 3072),
                format="int8_convrot",
                group=256,
                bytes_before=56623104,
                bytes_after=28348416,
                error=digits[0],
                sqnr_db=40 * digits[1],
                projected_error=digits[0] / 2,
                projected_nearest=digits[1] / 2,
                output_error=digits[0] / 3,
                output_nearest=digits[1] / 3,
                run_error=digits[0] / 5,
                run_nearest=digits[1] / 5,
                fell_back=False,
                seconds=10 * digits[0],
                reason="a linear layer that no rule keeps",
            )
        )
    assert len(json.dumps(packed(report))) < 175_000 < len(json.dumps(report.to_dict())) / 3
