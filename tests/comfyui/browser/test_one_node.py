"""From an empty graph to a file with one node, counted and filmed, and what the node recommends on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibrated_rounding.tools.comfyui.browser import Site

FILE = "diffusion_models/digits_wan.safetensors"


class Actions:
    """Counts what a user does, with a screenshot after each."""

    def __init__(self, site: Site) -> None:
        self.site, self.count = site, 0

    def do(self, name: str, action: Callable[..., Any], *args: Any) -> Any:
        result = action(*args)
        self.count += 1
        self.site.page.wait_for_timeout(600)
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
