"""From an empty graph to a saved model, with one node and with two: counted, and filmed in both themes.

The screenshots are the film: `CALIBRATED_ROUNDING_SCREENSHOTS=film pytest tests/comfyui/browser/test_one_node.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calibrated_rounding.tools.comfyui import PACK
from calibrated_rounding.tools.comfyui.browser import THEMES, Site

FILE = "diffusion_models/digits_wan.safetensors"

SETTLED = 1000
"""Milliseconds after which the panel has answered and a screenshot shows it."""

WINDOW = {"width": 1740, "height": 1130}
"""The window that shows the whole workflow with two nodes more."""

SAMPLING = next((PACK / "examples").glob("*Sample a saved file.json"))
"""A workflow of stock nodes; the test loads the float model with it."""


themes = pytest.mark.parametrize("theme", THEMES)


class Actions:
    """Counts what a user does, with a screenshot after each."""

    def __init__(self, site: Site) -> None:
        self.site, self.count = site, 0

    def do(self, name: str, action: Callable[..., Any], *args: Any) -> Any:
        result = action(*args)
        self.count += 1
        self.site.page.wait_for_timeout(SETTLED)
        self.site.screenshot(f"action_{self.count}_{name}")
        return result


@themes
def test_one_node_makes_file_in_four_actions(site: Site) -> None:
    actions = Actions(site)
    node = actions.do("add", site.add, "Quantize", (300, 160))
    assert site.call("nodeTypes") == ["CalibratedRoundingQuantizeFile"]
    actions.do("file", site.choose, node, "file", FILE)
    recommended = "Recommended: int8_convrot, nearest"
    site.watch(node, lambda panel: panel["title"].startswith("Planned") and recommended in panel["notices"])
    actions.do("preset", site.choose, node, "format.preset", "best")
    actions.do("run", site.press, "Run")
    done = site.watch_until(node, "done")[-1]
    site.screenshot("file_is_made")
    assert actions.count == 4
    path = next(Path(line) for line in done["notices"].split("\n") if line.endswith(".safetensors"))
    assert path.is_file() and path.is_relative_to(site.server.output)


@themes
def test_two_nodes_sample_and_save_in_eight_actions(site: Site) -> None:
    site.page.set_viewport_size(WINDOW)
    actions = Actions(site)
    text = SAMPLING.read_text(encoding="utf-8").replace("digits_int8_00001_", "digits_wan")
    actions.do("open", site.drop_workflow, json.loads(text))
    site.set_view(80, 0)
    loader, sampler = (site.call("findNode", kind) for kind in ("UNETLoader", "KSampler"))
    quantize = actions.do("add_quantize", site.add, "Quantize Model", (800, 284))
    actions.do("link_model", site.link, loader, "MODEL", quantize, "model")
    actions.do("link_sampler", site.link, quantize, "MODEL", sampler, "model")
    save = actions.do("add_save", site.add, "Save Quantized Model", (1220, 284))
    actions.do("link_save", site.link, quantize, "MODEL", save, "model")
    site.watch(quantize, lambda panel: "Recommended: int8_convrot" in panel["notices"])
    actions.do("format", site.choose, quantize, "format", "int8_row")
    actions.do("run", site.press, "Run")
    site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    site.wait("showsPictures", site.call("findNode", "SaveImage"), 4)
    site.page.wait_for_load_state("networkidle")
    site.page.wait_for_timeout(SETTLED)
    site.screenshot("sampled_and_saved")
    assert actions.count == 8
    path = Path(site.read_panel(save)["files"][0])
    assert path.is_file() and path.is_relative_to(site.server.output)


def test_old_workflow_keeps_its_settings(site: Site) -> None:
    """Workflows hold values by position; this one is as the first release saved it."""
    values = ["int8_row", "auto", "svd", "original", 60, 0, 0.2, 64, 256, "weight", False, 7]
    values += ["blocks.0", "mse", "256", "", "source", "source", "none", False, False, False, False, "off", "auto"]
    node = {"id": 1, "type": "CalibratedRoundingQuantizeModel", "pos": [100, 100], "size": [360, 480], "mode": 0}
    workflow = {"nodes": [node | {"inputs": [], "outputs": [], "widgets_values": [*values, "cpu", True]}]}
    workflow |= {"links": [], "groups": [], "version": 0.4, "last_node_id": 1, "last_link_id": 0}
    site.call("loadGraph", workflow)
    site.wait("hasNodes", 1)
    read = {name: site.call("widgetValue", 1, name) for name in ("format", "rounding", "rounding.random_seed")}
    assert read == {"format": "int8_row", "rounding": "svd", "rounding.random_seed": 7}
    others = ("exclude", "scale", "device", "merge_loras")
    assert [site.call("widgetValue", 1, name) for name in others] == ["blocks.0", "mse", "cpu", True]
