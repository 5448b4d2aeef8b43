"""From an empty graph to a file with one node, counted and filmed, and what the node recommends on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibrated_rounding.tools.comfyui import PACK
from calibrated_rounding.tools.comfyui.browser import Site

FILE = "diffusion_models/digits_wan.safetensors"


SETTLED = 1000
"""Milliseconds after which the panel has answered."""

SAMPLING = next((PACK / "examples").glob("*Sample a saved file.json"))
"""A workflow of stock nodes; the test loads the float model with it."""


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


def test_one_node_makes_file_in_four_actions(site: Site) -> None:
    actions = Actions(site)
    node = actions.do("add", site.add, "Quantize")
    assert site.call("nodeTypes") == ["CalibratedRoundingQuantizeFile"]
    actions.do("file", site.choose, node, "file", FILE)
    planned = site.watch(node, lambda panel: panel["title"].startswith("Planned"))[-1]
    assert "Recommended: int8_convrot, nearest" in planned["notices"]
    actions.do("preset", site.choose, node, "format.preset", "best")
    actions.do("run", site.press, "Run")
    done = site.watch_until(node, "done")[-1]
    site.screenshot("file_is_made")
    assert actions.count == 4
    path = next(Path(line) for line in done["notices"].split("\n") if line.endswith(".safetensors"))
    assert path.is_file() and path.is_relative_to(site.server.output)


def test_two_nodes_sample_and_save_in_seven_actions(site: Site) -> None:
    actions = Actions(site)
    text = SAMPLING.read_text(encoding="utf-8").replace("digits_int8_00001_", "digits_wan")
    workflow = json.loads(text)
    actions.do("open", site.call, "loadGraph", workflow)
    loader, sampler = (site.call("findNode", kind) for kind in ("UNETLoader", "KSampler"))
    quantize = actions.do("add_quantize", site.add, "Quantize Model", (900, 280))
    actions.do("link_model", site.connect, loader, "MODEL", quantize, "model")
    actions.do("link_sampler", site.connect, quantize, "MODEL", sampler, "model")
    save = actions.do("add_save", site.add, "Save Quantized Model", (1340, 280))
    actions.do("link_save", site.connect, quantize, "MODEL", save, "model")
    actions.do("run", site.press, "Run")
    site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    site.screenshot("sampled_and_saved")
    assert actions.count == 7
    assert "Recommended: int8_convrot" in site.read_panel(quantize)["notices"]


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
