"""Quantize to a Size says in its panel how far it is while it measures the formats."""

from __future__ import annotations

import json

from calibrated_rounding.tools.comfyui import PACK
from calibrated_rounding.tools.comfyui.browser import Site

EXAMPLE = next((PACK / "examples").glob("*Quantize to a size.json"))

ITERATIONS = 100
"""Of learned rounding, for every layer and format: measuring lasts as long as the server takes to say so."""


def test_measuring_is_shown(site: Site) -> None:
    site.call("loadGraph", json.loads(EXAMPLE.read_text(encoding="utf-8")))
    (node,) = site.call("nodesOf", "CalibratedRoundingQuantizeToSize")
    before = site.watch(node, lambda panel: "runs in 8 bits here" in panel["words"])[-1]
    site.screenshot("planned")
    assert "Text encoder" in before["words"]
    recipe = site.create("CalibratedRoundingRecipe")
    site.set(recipe, format="auto")
    site.set_slow_rounding(recipe, ITERATIONS)
    site.connect(recipe, "recipe", node, "recipe")
    site.press("Run")
    seen = site.watch(node, lambda panel: panel["words"].startswith("Measuring the formats: "))
    site.screenshot("measuring")
    seen += site.watch(node, lambda panel: panel["phase"] == "done", seconds=400)
    site.screenshot("done")
    words = [panel["words"] for panel in seen]
    assert not any("running" in text or "rounded" in text for text in words), "phases are told in words"
