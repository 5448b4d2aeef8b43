"""Quantize to a Size says in its panel how far it is while it measures the formats."""

from __future__ import annotations

import json

from calibrated_rounding.tools.comfyui import PACK
from calibrated_rounding.tools.comfyui.browser import Site

EXAMPLE = next((PACK / "examples").glob("*Quantize to a size.json"))


def test_measuring_is_shown(site: Site) -> None:
    site.call("loadGraph", json.loads(EXAMPLE.read_text(encoding="utf-8")))
    (node,) = site.call("nodesOf", "CalibratedRoundingQuantizeToSize")
    before = site.watch(node, lambda panel: "runs in 8 bits here" in panel["words"])[-1]
    site.screenshot("planned")
    assert "Text encoder" in before["words"]
    site.press("Run")
    seen = site.watch(node, lambda panel: panel["phase"] == "done", seconds=400)
    site.screenshot("done")
    words = [panel["words"] for panel in seen]
    assert not any("running" in text or "rounded" in text for text in words), "phases are told in words"
    if site.nodes2:  # the canvas has measured before, in the same session
        return
    assert any(text.startswith("Measuring the formats: ") for text in words)
