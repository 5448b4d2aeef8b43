"""The last lines of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibrated_rounding.quant.cli.ending import result_lines
from calibrated_rounding.quant.layer.layer_errors import ErrorPair, LayerErrors
from calibrated_rounding.quant.reports.entries import KeptReport, LayerReport
from calibrated_rounding.quant.reports.report import Report


def layer(**errors: ErrorPair | bool) -> LayerReport:
    return LayerReport(
        name="blocks.0.q",
        shape=(64, 64),
        format="int8_row",
        group=None,
        bytes_before=8192,
        bytes_after=4352,
        errors=LayerErrors(**{"weight": ErrorPair(0.01, 0.008), **errors}),
        reason="",
    )


def kept(name: str) -> KeptReport:
    return KeptReport(
        name=name, shape=(4, 4), dtype="bfloat16", bytes_before=32, bytes_after=32, reason="", source="structure"
    )


def lines(*layers: LayerReport, kept: list[KeptReport] | None = None, profile: str = "wan") -> list[str]:
    report = Report(profile=profile, certain=True, recipe={}, versions={}, layers=list(layers), kept=kept or [])
    return list(result_lines(report, Path("q.safetensors")))


def test_output_error_is_the_headline() -> None:
    result = lines(layer(output_w8a8=ErrorPair(0.03, 0.05), fell_back=True), layer(output_w8a8=ErrorPair(0.03, 0.05)))
    assert "output error (W8A8) 3.00%, 40% closer than nearest (5.00%)" in result
    assert "1 layer fell back to nearest" in result
    assert not any("weight error" in line for line in result)


def test_projected_error_is_the_headline_of_svd() -> None:
    result = lines(layer(projected=ErrorPair(0.001, 0.002)))
    assert "projected error 0.10%, 50% closer than nearest (0.20%)" in result


@pytest.mark.parametrize(
    ("names", "profile", "loader"),
    [
        (["blocks.0.norm.weight"], "wan", "Load Diffusion Model"),
        (["first_stage_model.conv.weight"], "wan", "Load Checkpoint"),
        ([], "t5xxl", "Load CLIP"),
        ([], "generic", "ComfyUI's loader"),
    ],
)
def test_next_step_names_the_loader(names: list[str], profile: str, loader: str) -> None:
    assert f"Next: {loader}" in lines(layer(), kept=[kept(name) for name in names], profile=profile)[-1]


def test_lines_fit_a_terminal() -> None:
    result = lines(layer(output_w8a8=ErrorPair(0.03, 0.05)), kept=[kept("a.weight"), kept("a.bias")])
    assert max(map(len, result)) <= 80
