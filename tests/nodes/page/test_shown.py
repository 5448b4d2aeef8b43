"""What a node shows after its run: the report's notices as text for any page, and as data for the pack's own."""

from __future__ import annotations

from calibrated_rounding.nodes.page.shown import UI_KEY, show_report
from calibrated_rounding.quant import Report
from calibrated_rounding.quant.notices import notice, render


def test_notices_of_the_report_reach_the_page() -> None:
    unrecorded = notice("layers_unrecorded", layers="blocks.0.ffn.2")
    shown = show_report(Report(profile="wan", certain=True, recipe={}, versions={}, notes=[unrecorded]))
    assert render(unrecorded) in shown["text"][0].splitlines()
    assert unrecorded.to_dict() in shown[UI_KEY][0]["notes"]
