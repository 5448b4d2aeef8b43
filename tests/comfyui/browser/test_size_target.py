"""The curve of size against error: a size that is chosen there is the target of the next run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from calibrated_rounding.tests.comfyui.browser.test_first_run import download
from calibrated_rounding.tools.comfyui.browser import Site

SHARE = "format.target.target_share"


def run_report(site: Site, node: int) -> tuple[Any, dict[str, Any]]:
    """Run, and open the report; returns the dialog and the report."""
    site.press("Run")
    site.watch_until(node, "done")
    dialog = site.open_report(node)
    return dialog, json.loads(download(site, dialog, "JSON"))


def close_report(site: Site, dialog: Any) -> None:
    site.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_size_on_curve_becomes_target(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.choose(quantize, "format", "auto")
    site.choose(quantize, "format.target", "share")
    site.set(quantize, format__target__target_share=0.95)
    dialog, report = run_report(site, quantize)
    words = dialog.locator(".calro-tradeoff .calro-said")

    circle = dialog.locator(".calro-tradeoff circle").nth(4)
    point = report["precision"]["curve"][4]
    circle.click()
    assert words.inner_text().startswith(f"Next run: {point['nbytes'] / 1e6:.3g} MB")
    site.screenshot("clicked")
    share = site.call("widgetValue", quantize, SHARE)
    assert share == pytest.approx(point["nbytes"] / report["totals"]["bytes_before"], abs=1e-4)

    dialog.locator(".calro-tradeoff svg").focus()
    site.page.keyboard.press("Home")
    assert site.call("widgetValue", quantize, SHARE) == share, "the arrow keys look and change nothing"
    site.page.keyboard.press("ArrowRight")
    site.page.keyboard.press("Enter")
    point = report["precision"]["curve"][1]
    assert words.inner_text().startswith(f"Next run: {point['nbytes'] / 1e6:.3g} MB")
    assert site.call("widgetValue", quantize, SHARE) < share
    close_report(site, dialog)
    site.watch(quantize, lambda panel: panel["title"].startswith("Planned"))
    site.screenshot("planned_for_it")

    dialog, report = run_report(site, quantize)
    assert report["totals"]["bytes_after"] == point["nbytes"]
    close_report(site, dialog)


def test_size_of_recommended_run_keeps_its_rounding(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    script = """async (id) => {
        const { setTarget } = await import("/extensions/calibrated-rounding/target.mjs");
        const recipe = { formats: ["int8_convrot", "w4a8"], rounding: "calibrated" };
        setTarget(window.app.graph.getNodeById(id), { recipe, totals: { bytes_before: 1000 } }, 500.01);
    }"""
    assert site.call("widgetValue", quantize, "format") == "recommended"
    site.page.evaluate(script, quantize)
    names = ("format", "format.formats", "format.target", SHARE, "rounding")
    assert [site.call("widgetValue", quantize, name) for name in names] == [
        *("auto", "int8_convrot, w4a8", "share", 0.5001, "calibrated")
    ]


def test_recipe_of_a_file_takes_no_target(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    recipe = site.create("CalibratedRoundingRecipe")
    site.connect(recipe, "recipe", quantize, "recipe")
    script = """async (id) => {
        const { settingNode } = await import("/extensions/calibrated-rounding/target.mjs");
        return settingNode(window.app.graph.getNodeById(id))?.comfyClass ?? null;
    }"""
    assert site.page.evaluate(script, quantize) == "CalibratedRoundingRecipe"
    loaded = site.create("CalibratedRoundingLoadRecipe")
    site.connect(loaded, "recipe", quantize, "recipe")
    assert site.page.evaluate(script, quantize) is None
