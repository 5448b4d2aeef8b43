"""Tables as columns: only digits that nobody sees are lost, and messages stay small."""

from __future__ import annotations

import json
from typing import Any

from calibrated_rounding.nodes.page.columns import columns
from calibrated_rounding.nodes.page.shown import pack_report
from calibrated_rounding.quant import LayerReport, Report
from calibrated_rounding.quant.layer.layer_errors import ErrorPair, LayerErrors
from calibrated_rounding.tools.comfyui.workflows import table
from hypothesis import given
from hypothesis import strategies as st

SIMPLE = st.one_of(st.text(max_size=5), st.integers(-9, 9), st.none(), st.booleans())
VALUES = st.one_of(SIMPLE, st.lists(st.integers(), max_size=2))
PAIRS = st.one_of(st.none(), st.fixed_dictionaries({"error": SIMPLE, "nearest": SIMPLE}))
OBJECTS = st.fixed_dictionaries({"pair": PAIRS, "flag": st.booleans()})
ROWS = st.lists(st.fixed_dictionaries({"a": VALUES, "b": PAIRS, "c": OBJECTS}), min_size=1)


@given(ROWS)
def test_rows_come_back(rows: list[dict[str, Any]]) -> None:
    assert table(json.loads(json.dumps(columns(rows)))) == rows


def test_numbers_keep_six_digits() -> None:
    rows = [{"seconds": 0.012345678901, "pair": {"error": 1234567.8}}]
    assert table(columns(rows)) == [{"seconds": 0.0123457, "pair": {"error": 1234570.0}}]


def test_no_rows_make_no_columns() -> None:
    assert columns([]) == {}


def layer(i: int) -> LayerReport:
    digits = (i * 0.6180339887498949 % 1, i * 0.7548776662466927 % 1)
    pairs = [ErrorPair(digits[0] / divisor, digits[1] / divisor) for divisor in (1, 2, 3, 5)]
    weight, projected, w8a16, w8a8 = pairs
    return LayerReport(
        name=f"double_blocks.{i}.img_attn.qkv",
        shape=(9216, 3072),
        format="int8_convrot",
        group=256,
        bytes_before=56623104,
        bytes_after=28348416,
        errors=LayerErrors(
            weight=weight, projected=projected, output_w8a16=w8a16, output_w8a8=w8a8, seconds=10 * digits[0]
        ),
        reason="a linear layer that no rule keeps",
    )


def test_a_thousand_layers_are_a_small_message() -> None:
    report = Report(profile="flux", certain=True, recipe={}, versions={}, layers=[layer(i) for i in range(1000)])
    assert len(json.dumps(pack_report(report))) < 175_000 < len(json.dumps(report.to_dict())) / 3


def test_packed_report_keeps_all_layers() -> None:
    report = Report(profile="flux", certain=True, recipe={}, versions={}, layers=[layer(i) for i in range(3)])
    errors = [row["errors"] for row in table(pack_report(report)["layers"])]
    assert [LayerErrors.from_dict(data).output_w8a8 is not None for data in errors] == [True] * 3
