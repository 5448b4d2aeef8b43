"""Notices: data that survives JSON, and one English text for each kind."""

from __future__ import annotations

import json

import pytest
from calibrated_rounding.quant.notices import LEVELS, TEMPLATES, Notice, notice, render


def test_notice_renders_its_values() -> None:
    assert render(notice("padded", rows=64, columns=96)) == "padded to 64 x 96"
    assert render(notice("format_chosen", candidates=["a (1)", "b (2)"])) == "chosen for the target, of a (1), b (2)"


def test_values_with_braces_render_as_they_are() -> None:
    assert render(notice("refused", text="{rows} of {0}")) == "{rows} of {0}"


def test_notice_level_defaults_to_its_kind() -> None:
    assert notice("refused", text="").level == "error"
    assert notice("refused", "warning", text="").level == "warning"


@pytest.mark.parametrize("values", [{}, {"rows": 1}, {"rows": 1, "columns": 2, "more": 3}])
def test_notice_values_must_match_template(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="padded"):
        notice("padded", **values)


def test_every_level_is_known() -> None:
    assert {level for level, _ in TEMPLATES.values()} <= set(LEVELS)


def test_notices_survive_json() -> None:
    made = notice("format_chosen", candidates=["int8_row (0.0050)", "int8_convrot/64 (0.0041)"])
    assert Notice.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "unheard_of", "level": "info", "values": {}},
        {"kind": "padded", "level": "info", "values": {"rows": 1}},
        {"kind": "fell_back", "level": "loud", "values": {}},
        {"kind": "fell_back", "values": {}},
        "padded to 64 x 64",
    ],
)
def test_invalid_notice_is_refused(data: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Notice.from_dict(data)  # type: ignore[arg-type]
