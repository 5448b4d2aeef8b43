"""Reports: totals, text, JSON and merging, without a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from calibrated_rounding.quant import KeptReport, LayerReport, Report
from calibrated_rounding.quant.layer.layer_errors import ErrorPair, LayerErrors
from calibrated_rounding.quant.notices import Notice, notice
from calibrated_rounding.quant.reports.report import merge_reports


def layer(name: str, *notes: Notice, **errors: Any) -> LayerReport:
    errors.setdefault("weight", ErrorPair(0.01, 0.008))
    return LayerReport(
        name=name,
        shape=(64, 32),
        format="int8_row",
        group=None,
        bytes_before=4096,
        bytes_after=2304,
        errors=LayerErrors(**errors),
        reason="a linear layer",
        notes=notes,
    )


def kept(name: str, shape: tuple[int, ...], reason: str = "a rule") -> KeptReport:
    return KeptReport(
        name=name, shape=shape, dtype="bfloat16", bytes_before=10, bytes_after=10, reason=reason, source="recipe"
    )


def report(*layers: LayerReport, **fields: Any) -> Report:
    return Report(**{"profile": "flux", "certain": True, "recipe": {}, "versions": {}, "layers": [*layers], **fields})


def test_totals_are_root_mean_squares() -> None:
    measured = layer("a", output_w8a8=ErrorPair(0.03, 0.05))
    totals = report(measured, layer("b", weight=ErrorPair(0.07, 0.07), fell_back=True)).totals
    assert totals.weight is not None and totals.weight.error == pytest.approx(math.sqrt((0.01**2 + 0.07**2) / 2))
    assert totals.output_w8a8 == ErrorPair(0.03, 0.05)
    assert totals.output_w8a16 is None
    assert totals.fell_back == 1


def test_totals_count_kept_layers_apart_from_other_tensors() -> None:
    others = [kept("a.bias", (64,)), kept("norm.weight", (64,)), kept("conv.weight", (4, 4, 3, 3))]
    totals = report(layer("a"), kept=[kept("b.weight", (64, 32)), *others]).totals
    assert (totals.layers, totals.kept_layers, totals.other_tensors) == (1, 1, 3)
    assert (totals.bytes_before, totals.bytes_after) == (4096 + 40, 2304 + 40)


def test_output_error_is_primary_if_measured() -> None:
    weight, output = ErrorPair(0.01, 0.01), ErrorPair(0.02, 0.03)
    assert LayerErrors(weight=weight).primary == weight
    assert LayerErrors(weight=weight, output_w8a16=weight, output_w8a8=output).primary == output


def test_a_report_survives_json() -> None:
    made = report(
        layer("a", notice("padded", rows=64, columns=64), output_w8a16=ErrorPair(0.1, 0.2), seconds=1.5),
        layer("b", notice("format_chosen", candidates=["int8_row (0.1)"]), projected=ErrorPair(0.1, 0.2)),
        kept=[kept("a.bias", (64,))],
        removed={"old": "not needed"},
        notes=[notice("needs_pack", formats=["int8_blockwise"])],
        seconds=2.0,
    )
    assert Report.from_dict(json.loads(made.to_json())) == made


def test_json_nests_the_errors_and_has_no_infinity() -> None:
    made = report(layer("a", output_w8a8=ErrorPair(0.03, 0.05)), recipe={"target_gb": math.inf, "lr": math.nan})
    data = json.loads(made.to_json(), parse_constant=pytest.fail)
    assert data["layers"][0]["errors"]["output_w8a8"] == {"error": 0.03, "nearest": 0.05}
    assert data["layers"][0]["errors"]["projected"] is None
    assert data["totals"]["output_w8a8"] == {"error": 0.03, "nearest": 0.05}
    assert data["recipe"] == {"target_gb": None, "lr": None}


@pytest.mark.parametrize("damage", [{"layers": None}, {"notes": ["a sentence"]}, {"precision": 3}, {"unknown": 1}])
def test_invalid_report_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Report.from_dict(report(layer("a")).to_dict() | damage)


def test_the_summary_leads_with_the_output_error() -> None:
    plain = report(layer("a"), kept=[kept("b.weight", (1, 1)), kept("a.bias", (1,)), kept("c", (1,))]).summary()
    assert plain.startswith("flux: 1 layer quantized, 1 kept (0.00 MB), norms and biases 0.00 MB, ")
    assert "error" not in plain, "the error of the weights alone is no headline"
    calibrated = report(layer("a", output_w8a8=ErrorPair(0.0312, 0.05), fell_back=True)).summary()
    assert "output error (W8A8) 3.12%, 38% closer than nearest (5.00%), 1 fell back to nearest" in calibrated


def test_the_table_shows_nearest_only_beside_other_rounding() -> None:
    nearest = report(layer("a", weight=ErrorPair(0.01, 0.01))).table().splitlines()[0]
    assert nearest.split() == ["layer", "shape", "format", "MB", "weight", "error", "dB", "notes"]
    learned = report(layer("a", output_w8a16=ErrorPair(0.1, 0.2)), layer("b")).table().splitlines()
    assert learned[0].count("nearest") == 2 and "output error (W8A16)" in learned[0]
    assert "10.000%  20.000%" in learned[1] and learned[2].split()[-2:] == ["-", "-"]


def test_sensitivities_show_as_shares_of_the_effect() -> None:
    measured = report(replace(layer("a"), effect=0.3), replace(layer("b"), effect=0.1), layer("c"))
    assert measured.share_effects() == pytest.approx({"a": 0.75, "b": 0.25})
    head, *lines = measured.table().splitlines()
    assert "effect on the picture" in head
    assert [line.split()[-1] for line in lines[:3]] == ["75.0%", "25.0%", "-"]
    assert "effect" not in report(layer("a")).table()


def test_warnings_of_layers_are_grouped_by_text() -> None:
    missing, padded = notice("nearest_without_inputs"), notice("padded", rows=1, columns=2)
    lines = report(layer("a", missing, padded), layer("b", missing)).short().splitlines()
    assert lines[0] == "rounded to nearest: no inputs were recorded (2): a, b"
    assert not any("padded" in line for line in lines)


def test_names_cannot_forge_lines_or_steer_a_terminal() -> None:
    name = "a\nmade by nobody\x1b[2J"
    text = report(layer(name), kept=[kept(name, (64,))]).table()
    assert "\x1b" not in text
    assert not any(line.startswith("made by") for line in text.splitlines())


def test_merging_prefixes_names_and_adds_up() -> None:
    note = notice("not_recognised")
    parts = {
        "clip": report(layer("a"), profile="llama", notes=[note], seconds=1.0, removed={"x": "y"}),
        "t5": report(layer("a"), profile="t5xxl", certain=False, notes=[note], seconds=2.0, kept=[kept("b", (1,))]),
    }
    merged = merge_reports(parts)
    assert (merged.profile, merged.certain, merged.seconds) == ("llama + t5xxl", False, 3.0)
    assert [entry.name for entry in [*merged.layers, *merged.kept]] == ["clip.a", "t5.a", "t5.b"]
    assert merged.notes == [note]
    assert merged.removed == {"clip.x": "y"}
    assert merge_reports({"clip": parts["clip"]}) is parts["clip"]
