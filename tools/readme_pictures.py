"""Draw the pictures of the README and the manual anew: `python tools/readme_pictures.py`.

Runs the pack in a ComfyUI, found as the tests find it, and takes pictures of its page: what they show has happened.
Needs what the browser tests need, and Pillow. Writes into ``examples``.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from calibrated_rounding.tools.comfyui import PACK, Server, find_host
from calibrated_rounding.tools.comfyui.site import Site, launch
from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = PACK / "examples"
BASE = Path(tempfile.gettempdir()) / "ComfyUI"
"""Its name is seen in the pictures."""

SCALE = 1.5
COLOURS = 192
MARGIN = 24
PLAIN = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
MODEL = "digits_wan.safetensors"
BOXES = """() => window.app.graph.nodes.map(({ id }) => {
  const { left, top, right, bottom } = document.querySelector(`[data-node-id="${id}"]`).getBoundingClientRect();
  return [left, top, right, bottom];
})"""

Box = Mapping[str, float]


def saved(site: Site) -> bytes:
    """The three nodes when they have run."""
    quantize, save = chain(site)
    site.set(save, filename_prefix="diffusion_models/digits_int8")
    site.queue()
    site.until(quantize, "done")
    site.until(save, "done")
    return picture(site, around(site))


def with_a_notice(site: Site) -> bytes:
    """What a node says before it runs."""
    quantize, _ = chain(site)
    site.set(quantize, format="float8_e4m3fn")
    site.watch(quantize, lambda shown: "emulated" in shown["notices"] and "Planned" in shown["title"])
    return picture(site, around(site))


def report(site: Site) -> bytes:
    """The full report of a model that was brought to a size, with its calibration."""
    workflow = json.loads((FOLDER / "quantize_to_a_size.json").read_text(encoding="utf-8"))
    quantize = next(node["id"] for node in workflow["nodes"] if "auto" in node.get("widgets_values", [])[:1])
    site.page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
    site.wait(f"() => window.app.graph.nodes.length === {len(workflow['nodes'])}")
    site.queue()
    site.until(quantize, "done")
    dialog = site.report(quantize)
    site.page.evaluate("() => document.activeElement.blur()")
    return picture(site, dialog.bounding_box())


PICTURES: Mapping[str, Callable[[Site], bytes]] = {
    "quantize_model": saved,
    "before_the_run": with_a_notice,
    "report": report,
}


def chain(site: Site) -> tuple[int, int]:
    """The ids of a quantize and a save node behind a loader."""
    types = ("UNETLoader", "CalibratedRoundingQuantizeModel", "CalibratedRoundingSaveModel")
    loader, quantize, save = (site.create(kind) for kind in types)
    site.set(loader, unet_name=MODEL)
    site.connect(loader, "MODEL", quantize, "model")
    site.connect(quantize, "MODEL", save, "model")
    return quantize, save


def around(site: Site) -> Box:
    lefts, tops, rights, bottoms = zip(*site.page.evaluate(BOXES), strict=True)
    x, y = min(lefts) - MARGIN, min(tops) - MARGIN
    return {"x": x, "y": y, "width": max(rights) + MARGIN - x, "height": max(bottoms) + MARGIN - y}


def picture(site: Site, clip: Box) -> bytes:
    return bytes(site.page.screenshot(clip=clip))


def small(png: bytes) -> Image.Image:
    """In a palette of few colours."""
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    if BASE.exists():
        raise SystemExit(f"{BASE} is there already; take it away first.")
    try:
        BASE.mkdir()
        with Server(find_host(), BASE) as server, sync_playwright() as playwright:
            browser = launch(playwright)
            for name, draw in PICTURES.items():
                context = browser.new_context(viewport={"width": 1400, "height": 900}, device_scale_factor=SCALE)
                site = Site(server, context.new_page(), BASE / "shots", nodes2=True)
                site.open(**PLAIN)
                site.page.evaluate("() => Object.assign(window.app.canvas.ds, { offset: [0, 120] })")
                small(draw(site)).save(FOLDER / f"{name}.png", optimize=True)
                context.close()
                server.interrupt()
            browser.close()
    finally:
        shutil.rmtree(BASE)


if __name__ == "__main__":
    main()
