"""Write the example workflows and their thumbnails: `python tools/example_workflows.py [NUMBER ...]`.

Run it after a change of a node's inputs: a workflow stores the values of a node's widgets by position. Needs a ComfyUI,
found as in the tests, which describes the widgets and draws the thumbnails.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrated_rounding.tools.comfyui import PACK, Server, find_host
from calibrated_rounding.tools.comfyui.workflows import api_format
from PIL import Image, ImageDraw, ImageFont

from example_graphs import NAMES, Template
from example_layout import ui_format

EXAMPLES = PACK / "examples"
SAMPLING = next(template for template in NAMES.values() if template.title == "Sample a saved file")

WIDTH = 768
CAPTION, FONT_SIZE, BACKGROUND, INK = 88, 44, "#1f2a36", "#ffffff"
"""The band with the template's title: height in pixels, and colours."""


def main() -> None:
    chosen = set(map(int, sys.argv[1:]))
    for old in () if chosen else (*EXAMPLES.glob("*.json"), *EXAMPLES.glob("*.jpg")):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder, Server(find_host(), Path(folder)) as server:
        for number, (name, template) in enumerate(NAMES.items(), 1):
            if chosen and number not in chosen:
                continue
            workflow = ui_format(template, server.object_info)
            (EXAMPLES / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
            shown = draw(api_format(workflow), server) or draw(sample_newest_file(number, server), server)
            sheet = make_sheet([[server.image(image) for image in images] for images in shown])
            add_caption(sheet, template).save(EXAMPLES / f"{name}.jpg", quality=90)


def draw(graph: Mapping[str, Any], server: Server) -> list[list[dict[str, str]]]:
    """Run a workflow; returns the pictures of each node that shows some, in its order."""
    outputs = server.execute(graph)
    return [outputs[node]["images"] for node in graph if "images" in outputs.get(node, {})]


def sample_newest_file(digit: int, server: Server) -> dict[str, Any]:
    """Make a workflow of stock nodes that samples the newest model file."""
    newest = max(server.output.glob("diffusion_models/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    sampling = api_format(ui_format(SAMPLING, server.object_info))
    for node in sampling.values():
        if node["class_type"] == "UNETLoader":
            node["inputs"]["unet_name"] = newest.name
        if node["inputs"].get("class_index") == SAMPLING.nodes["digit"].values["class_index"]:
            node["inputs"]["class_index"] = digit
    return sampling


def make_sheet(nodes: list[list[bytes]]) -> Image.Image:
    """Arrange as many of each node's pictures as fill about a square, the shape of the template browser's cards."""
    pictures = [[Image.open(io.BytesIO(file)).convert("RGB") for file in files] for files in nodes]
    aspect = pictures[0][0].width / pictures[0][0].height
    columns = 2 if aspect < 2 else 1
    each = max(1, columns * round(columns * aspect) // len(nodes))
    shown = [picture for row in pictures for picture in row[:each]]
    width = WIDTH // columns
    height = round(width / aspect)
    sheet = Image.new("RGB", (WIDTH, len(shown) // columns * height))
    for i, picture in enumerate(shown):
        large = picture.resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(large, (i % columns * width, i // columns * height))
    return sheet


def add_caption(sheet: Image.Image, template: Template) -> Image.Image:
    """Put the template's title in a band above its pictures."""
    result = Image.new("RGB", (sheet.width, sheet.height + CAPTION), BACKGROUND)
    result.paste(sheet, (0, CAPTION))
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(result).text((sheet.width / 2, CAPTION / 2), template.title, fill=INK, font=font, anchor="mm")
    return result


if __name__ == "__main__":
    main()
