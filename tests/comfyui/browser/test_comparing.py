"""Compare Models in the page: the verdict in words, and the pictures under a slider."""

from __future__ import annotations

import json
from pathlib import Path

from calibrated_rounding.tools.comfyui.browser import Site

EXAMPLE = next((Path(__file__).parents[3] / "examples").glob("6 *.json"))
EDGE = "(input) => getComputedStyle(input.parentElement).getPropertyValue('--calro-edge')"


def test_verdict_and_pictures_of_a_comparison(site: Site) -> None:
    site.call("loadGraph", json.loads(EXAMPLE.read_text(encoding="utf-8")))
    nodes = site.call("nodesOf", "CalibratedRoundingCompareModels")
    site.press("Run")
    for node in nodes:
        panel = site.watch(node, lambda panel: panel["phase"] == "done", seconds=400)[-1]
        assert panel["words"].splitlines()[0].removeprefix("i").startswith(("Very close", "Close", "Identical"))
        assert "PSNR dB" in panel["words"]
    site.screenshot("verdict")
    site.panel_button(nodes[0], "Compare pictures")
    dialog = site.page.locator("dialog.calro-slider")
    edge = dialog.locator("input[type=range]")
    site.expect(lambda: edge.evaluate(EDGE), "50%")
    site.wait_until_still(dialog)
    site.screenshot("slider")
    site.page.keyboard.press("ArrowLeft")
    site.expect(lambda: edge.evaluate(EDGE), "49.5%")
    box = edge.bounding_box()
    site.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 40)
    site.page.mouse.down()
    site.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 40, steps=4)
    site.page.mouse.up()
    site.expect(lambda: 70 < float(edge.evaluate(EDGE).rstrip("%")) < 90, True)
    dialog.get_by_label("Compare the reference with").select_option("difference")
    site.screenshot("difference")
    site.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
