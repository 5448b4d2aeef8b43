"""Draw the pictures of the README and the manual: `python tools/readme_pictures.py [NAME ...]`.

Runs the pack in a ComfyUI, found as in the tests, and takes screenshots of its page. Needs the packages of the browser
tests and Pillow. Writes into ``examples``.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from calibrated_rounding.tools.comfyui import PACK, Server, find_host
from calibrated_rounding.tools.comfyui.browser import Site, launch
from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = PACK / "examples"
BASE = Path(tempfile.gettempdir()) / "ComfyUI"
"""Its name appears in the pictures."""

SCALE = 1.5
COLOURS = 192
MARGIN = 24
PLAIN = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
MODEL = "digits_wan.safetensors"
PICTURES_EACH = 4
"""Pictures of each sampling in the templates."""

Box = Mapping[str, float]


def draw_one_node(site: Site) -> bytes:
    """Draw the node Quantize after a run: the file, what was recommended, and what came of it."""
    node = site.create("CalibratedRoundingQuantizeFile")
    site.set(node, file=f"diffusion_models/{MODEL}")
    site.watch(node, lambda panel: "Recommended" in panel["notices"])
    site.queue()
    site.watch_until(node, "done")
    site.page.wait_for_timeout(2000)  # the frame of a running node goes later
    return take_picture(site, bound_nodes(site))


def draw_saved(site: Site) -> bytes:
    """Draw the three nodes after a run."""
    quantize, save = create_chain(site)
    site.set(save, filename_prefix="diffusion_models/digits_int8")
    site.watch(quantize, lambda panel: "Recommended" in panel["notices"])
    site.queue()
    site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    return take_picture(site, bound_nodes(site))


def draw_notice(site: Site) -> bytes:
    """Draw a node's warning before it runs."""
    quantize, _ = create_chain(site)
    site.set(quantize, format="float8_e4m3fn")
    site.watch(quantize, lambda panel: "only saves memory here" in panel["notices"] and "Planned" in panel["title"])
    return take_picture(site, bound_nodes(site))


def draw_report(site: Site) -> bytes:
    """Draw the full report of a model quantized to a size, with a calibration."""
    workflow = json.loads((FOLDER / "7 Fit a size.json").read_text(encoding="utf-8"))
    quantize = next(node["id"] for node in workflow["nodes"] if "auto" in node.get("widgets_values", [])[:1])
    site.call("loadGraph", workflow)
    site.wait("hasNodes", len(workflow["nodes"]))
    site.queue()
    site.watch_until(quantize, "done")
    dialog = site.open_report(quantize)
    site.page.evaluate("() => document.activeElement.blur()")
    return take_picture(site, dialog.bounding_box())


def draw_calibration(site: Site) -> bytes:
    """Draw the workflow that records, rounds and samples, after a run."""
    workflow = json.loads((FOLDER / "5 Calibrate and quantize.json").read_text(encoding="utf-8"))
    quantize = next(node["id"] for node in workflow["nodes"] if node["type"] == "CalibratedRoundingQuantizeModel")
    site.page.set_viewport_size({"width": 2000, "height": 1000})
    site.call("loadGraph", workflow)
    site.wait("hasNodes", len(workflow["nodes"]))
    site.queue()
    site.watch_until(quantize, "done")
    site.page.locator("[data-node-id] img").nth(2 * PICTURES_EACH - 1).wait_for(timeout=120_000)
    site.call("fitView")
    site.page.wait_for_timeout(1000)
    return take_picture(site, bound_nodes(site))


PICTURES: Mapping[str, Callable[[Site], bytes]] = {
    "one_node": draw_one_node,
    "quantize_model": draw_saved,
    "before_the_run": draw_notice,
    "calibrate": draw_calibration,
    "report": draw_report,
}


def create_chain(site: Site) -> tuple[int, int]:
    """Create a loader, a quantize and a save node; returns the ids of the last two."""
    types = ("UNETLoader", "CalibratedRoundingQuantizeModel", "CalibratedRoundingSaveModel")
    loader, quantize, save = (site.create(kind) for kind in types)
    site.set(loader, unet_name=MODEL)
    site.connect(loader, "MODEL", quantize, "model")
    site.connect(quantize, "MODEL", save, "model")
    return quantize, save


def bound_nodes(site: Site) -> Box:
    """Compute the box around all nodes."""
    lefts, tops, rights, bottoms = zip(*site.call("nodeBoxes"), strict=True)
    x, y = min(lefts) - MARGIN, min(tops) - MARGIN
    return {"x": x, "y": y, "width": max(rights) + MARGIN - x, "height": max(bottoms) + MARGIN - y}


def take_picture(site: Site, clip: Box) -> bytes:
    return bytes(site.page.screenshot(clip=clip))


def reduce_colours(png: bytes) -> Image.Image:
    """Convert a picture to a palette of few colours."""
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    chosen = sys.argv[1:] or PICTURES
    if BASE.exists():
        raise SystemExit(f"{BASE} exists already; remove it first.")
    try:
        BASE.mkdir()
        with Server(find_host(), BASE) as server, sync_playwright() as playwright:
            browser = launch(playwright)
            for name in chosen:
                context = browser.new_context(viewport={"width": 1400, "height": 900}, device_scale_factor=SCALE)
                site = Site(server, context.new_page(), BASE / "shots", nodes2=True)
                site.open(**PLAIN)
                site.set_view(0, 120)
                reduce_colours(PICTURES[name](site)).save(FOLDER / f"{name}.png", optimize=True)
                context.close()
                server.interrupt()
            browser.close()
    finally:
        shutil.rmtree(BASE)


if __name__ == "__main__":
    main()
