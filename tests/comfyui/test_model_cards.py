"""Model cards of the save nodes: they say what was measured, whatever happened to the MODEL on the way to the file."""

from __future__ import annotations

from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def cards(host: Host) -> dict[str, Any]:
    return host.call(
        "tests.comfyui.programs.model_cards:write_cards",
        source=example_model("digits_wan.safetensors"),
        encoder=example_model("digits_gemma2.safetensors"),
        table=load_file(example_model("digits_conditioning.safetensors"))["conditioning"],
        timeout=1800,
    )


def closeness(card: str) -> list[str]:
    return card.partition("## How close it is\n\n")[2].splitlines()


def test_saved_model_tells_what_was_measured(cards: dict[str, Any]) -> None:
    pair, lines = cards["totals"]["output_w8a8"], closeness(cards["saved"])
    sizes = [f"{cards['totals'][name] / 1e6:.2f} MB" for name in ("bytes_before", "bytes_after")]
    assert lines[0] == f"- {sizes[0]} before, {sizes[1]} after."
    assert f"output error (W8A8) {pair['error']:.2%}" in lines[1] and f"nearest ({pair['nearest']:.2%})" in lines[1]
    assert cards["digest"] in lines[2]
    assert "- rounding: `calibrated`" in cards["saved"]


@pytest.mark.parametrize("way", ["clone", "cached", "reloaded"])
def test_figures_stay_with_the_model(cards: dict[str, Any], way: str) -> None:
    assert closeness(cards[way]) == closeness(cards["saved"])


def test_second_run_comes_from_disk(cards: dict[str, Any]) -> None:
    assert cards["from_disk"]


def test_merged_lora_is_told_beside_the_figures(cards: dict[str, Any]) -> None:
    more = "- Measured before patches were merged at saving; ComfyUI rounds the layers that they change to nearest."
    assert set(closeness(cards["patched"])) - set(closeness(cards["saved"])) == {more}
    assert "merged when it was saved" in cards["patched"]


def test_saved_encoder_tells_its_own_figures(cards: dict[str, Any]) -> None:
    pair = cards["encoder_totals"]["output_w8a8"]
    assert f"output error (W8A8) {pair['error']:.2%}" in closeness(cards["encoder"])[1]


def test_float_file_claims_no_figures(cards: dict[str, Any]) -> None:
    card = cards["float"]["calibrated_rounding"][0]["inspected"]["card"]
    assert closeness(card) == ["The file does not say how close it is."]
