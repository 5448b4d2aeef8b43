"""Write the example workflows and their thumbnails: `python tools/example_workflows.py`.

Run it after a change of a node's inputs: a workflow stores the values of a node's widgets by position. Needs a ComfyUI,
found as in the tests, which describes the widgets and draws the thumbnails.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibrated_rounding.tools.comfyui import PACK, Server, find_host
from calibrated_rounding.tools.comfyui.workflows import api_format
from PIL import Image

from example_prompts import SEEN, fill_template

EXAMPLES = PACK / "examples"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
DIGIT, NOTHING, PICTURES = 7, 10, 4
THUMBNAIL_WIDTH = 768


Link = tuple[str, int]
"""Key of the source node, and its output slot."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a workflow."""

    type: str
    pos: tuple[int, int]
    """In pixels, like the size."""
    size: tuple[int, int]
    values: Mapping[str, Any] = field(default_factory=dict)
    """By widget; the others have their defaults."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """By input."""
    title: str | None = None


def sampling(
    model: Link, name: str, x: int, y: int, title: str, conditionings: Mapping[str, Link] | None = None
) -> dict[str, Node]:
    """A sampler, a decoder and an image in a row.

    Args:
        model: Node and slot of the MODEL.
        name: Prefix of the nodes' keys, and of the image's file name.
        x: Of the first node.
        y: Of all nodes.
        title: Of the sampler.
        conditionings: Links of the sampler's conditionings; by default to the nodes of `digit_inputs`.
    """
    links = sampler_links(model=model) | (conditionings or {})
    values = {"seed": 1, "control_after_generate": "fixed", **STEPS}
    decoded = {"samples": (f"{name} sampler", 0), "vae": ("vae", 0)}
    return {
        f"{name} sampler": Node(type="KSampler", pos=(x, y), size=(300, 270), values=values, links=links, title=title),
        f"{name} decoder": Node(type="VAEDecode", pos=(x + 340, y), size=(200, 60), values={}, links=decoded),
        f"{name} image": Node(
            type="SaveImage",
            pos=(x + 580, y),
            size=(300, 300),
            values={"filename_prefix": name},
            links={"images": (f"{name} decoder", 0)},
        ),
    }


def digit_inputs(y: int, pictures: int = PICTURES) -> dict[str, Node]:
    """Inputs of sampling beside the model: the class, no class, an empty latent, the decoder."""
    table = "digits_conditioning.safetensors"
    load = "CalibratedRoundingLoadClassConditioning"
    return {
        "digit": Node(
            type=load,
            pos=(40, y),
            size=(320, 90),
            values={"table": table, "class_index": DIGIT},
            title="The digit to draw",
        ),
        "nothing": Node(
            type=load,
            pos=(40, y + 160),
            size=(320, 90),
            values={"table": table, "class_index": NOTHING},
            title="No digit",
        ),
        **latent_and_vae(y + 320, pictures),
    }


def latent_and_vae(y: int, pictures: int = PICTURES) -> dict[str, Node]:
    """An empty latent, and the decoder."""
    size = {"width": 64, "height": 64, "length": 1, "batch_size": pictures}
    return {
        "latent": Node(type="EmptyHunyuanLatentVideo", pos=(40, y), size=(320, 140), values=size),
        "vae": Node(type="VAELoader", pos=(40, y + 190), size=(320, 60), values={"vae_name": "digits_vae.safetensors"}),
    }


def prompts(encoder: str, name: str, x: int, y: int) -> tuple[dict[str, Node], dict[str, Link]]:
    """The prompt and an empty prompt, encoded one above the other, and the links of a sampler's conditionings."""
    keys = {"positive": f"{name} prompt", "negative": f"{name} nothing"}
    texts = {"positive": PROMPT, "negative": ""}
    nodes = {
        key: Node(
            type="CLIPTextEncode",
            pos=(x, y + 160 * i),
            size=(320, 120),
            values={"text": texts[side]},
            links={"clip": (encoder, 0)},
            title=key.capitalize(),
        )
        for i, (side, key) in enumerate(keys.items())
    }
    return nodes, {side: (key, 0) for side, key in keys.items()}


def sampler_links(**models: Link) -> dict[str, Link]:
    """Links of a node that samples."""
    return {**models, "positive": ("digit", 0), "negative": ("nothing", 0), "latent_image": ("latent", 0)}


def comparison(name: str, y: int, values: Mapping[str, Any], title: str) -> dict[str, Node]:
    """A model quantized with ``values`` and compared with the float model, in a row; ``name`` is their key."""
    calibrated = values.get("rounding") == "calibrated"
    links = {"model": ("model", 0)} | ({"calibration": ("calibrate", 0)} if calibrated else {})
    compared = sampler_links(reference=("model", 0), candidate=(name, 0)) | {"vae": ("vae", 0)}
    settings = {"seeds": "1-4", **STEPS}
    compare = "CalibratedRoundingCompareModels"
    return {
        name: Node(type=QUANTIZE, pos=(800, y), size=(360, 640), values=values, links=links),
        f"{name} compared": Node(
            type=compare,
            pos=(1220, y),
            size=(420, 640),
            values=settings,
            links=compared,
            title=f"Float against {title}",
        ),
        f"{name} report": Node(
            type="PreviewAny",
            pos=(1700, y),
            size=(420, 640),
            values={},
            links={"source": (f"{name} compared", 1)},
            title="Seed by seed, step by step",
        ),
    }


def calibration(probe_steps: int = 0) -> dict[str, Node]:
    """The float model, the inputs of sampling, and a calibration at other seeds than the comparison's."""
    settings = {"seed": 1000, "control_after_generate": "fixed", "runs": 4, "probe_steps": probe_steps, **STEPS}
    node, links = "CalibratedRoundingCalibrateModel", sampler_links(model=("model", 0))
    return {
        "model": LOADER,
        **digit_inputs(190, pictures=1),
        "calibrate": Node(
            type=node, pos=(420, 40), size=(320, 420), values=settings, links=links, title="Calibrate at other seeds"
        ),
    }


PROMPT = "a handwritten seven"
CALIBRATION_PROMPTS = "\n".join(fill_template(template, i % 10, numeral=i >= 10) for i, template in enumerate(SEEN))
STEPS = {"steps": 20, "cfg": 3.0, "scheduler": "simple"}
LOADER = Node(type="UNETLoader", pos=(40, 40), size=(320, 90), values={"unet_name": "digits_wan.safetensors"})
QUANTIZE = "CalibratedRoundingQuantizeModel"
PROFILE, CALIBRATED = {"format": "int8_convrot"}, {"rounding": "calibrated"}
SIZED = {
    "format": "auto",
    "format.formats": "int8_convrot",
    "format.target": "share",
    "format.target.target_share": 0.68,
}
"""No larger than with the profile."""

QUANTIZED_PROMPT, QUANTIZED_CONDITIONINGS = prompts("quantize", "quantized", 1220, 40)
FLOAT_PROMPT, FLOAT_CONDITIONINGS = prompts("encoder", "float", 1220, 400)

WORKFLOWS: dict[str, dict[str, Node]] = {
    "quantize_and_sample": {
        "model": LOADER,
        "quantize": Node(
            type=QUANTIZE,
            pos=(420, 40),
            size=(360, 480),
            values={"format": "int8_convrot"},
            links={"model": ("model", 0)},
        ),
        "report": Node(
            type="PreviewAny",
            pos=(420, 580),
            size=(360, 260),
            values={},
            links={"source": ("quantize", 1)},
            title="Layer by layer",
        ),
        **digit_inputs(190),
        **sampling(("quantize", 0), "int8", 840, 40, "Sample the quantized model"),
        **sampling(("model", 0), "float", 840, 400, "Sample the float model"),
    },
    "quantize_and_save": {
        "model": LOADER,
        "quantize": Node(
            type=QUANTIZE,
            pos=(420, 40),
            size=(360, 680),
            values={"format": "int8_convrot", "rounding": "svd"},
            links={"model": ("model", 0)},
            title="Learn which way to round",
        ),
        "save": Node(
            type="CalibratedRoundingSaveModel",
            pos=(840, 40),
            size=(360, 220),
            values={"filename_prefix": "diffusion_models/digits_int8"},
            links={"model": ("quantize", 0)},
        ),
        "path": Node(
            type="PreviewAny",
            pos=(840, 320),
            size=(360, 130),
            values={},
            links={"source": ("save", 0)},
            title="The file",
        ),
        "report": Node(
            type="PreviewAny",
            pos=(840, 510),
            size=(360, 340),
            values={},
            links={"source": ("quantize", 1)},
            title="Layer by layer",
        ),
    },
    "quantize_a_file": {
        "quantize": Node(
            type="CalibratedRoundingQuantizeFile",
            pos=(40, 40),
            size=(400, 680),
            values={
                "file": "diffusion_models/digits_wan.safetensors",
                "format": "int8_convrot",
                "name": "digits_int8_from_file",
            },
            title="Quantize: a file, a layer at a time",
        ),
        "path": Node(
            type="PreviewAny",
            pos=(500, 40),
            size=(420, 130),
            values={},
            links={"source": ("quantize", 0)},
            title="The file",
        ),
        "report": Node(
            type="PreviewAny",
            pos=(500, 230),
            size=(420, 490),
            values={},
            links={"source": ("quantize", 1)},
            title="Layer by layer",
        ),
    },
    "calibrate_quantize_sample": {
        "model": LOADER,
        "record": Node(
            type="CalibratedRoundingRecordCalibration",
            pos=(420, 40),
            size=(320, 120),
            values={},
            links={"model": ("model", 0)},
            title="Record the layers' inputs",
        ),
        **digit_inputs(190),
        **sampling(("record", 0), "float", 800, 40, "Sample the float model as usual"),
        "collect": Node(
            type="CalibratedRoundingCollectCalibration",
            pos=(420, 400),
            size=(320, 90),
            values={},
            links={"recorder": ("record", 1), "after": ("float sampler", 0)},
        ),
        "recorded": Node(
            type="PreviewAny",
            pos=(420, 600),
            size=(320, 160),
            values={},
            links={"source": ("collect", 1)},
            title="The recording",
        ),
        "quantize": Node(
            type=QUANTIZE,
            pos=(800, 400),
            size=(360, 640),
            values={"format": "float8_e4m3fn", "rounding": "calibrated"},
            links={"model": ("model", 0), "calibration": ("collect", 0)},
            title="Round with the calibration",
        ),
        **sampling(("quantize", 0), "calibrated", 1220, 400, "Sample the quantized model"),
        "report": Node(
            type="PreviewAny",
            pos=(1220, 760),
            size=(540, 280),
            values={},
            links={"source": ("quantize", 1)},
            title="Layer by layer",
        ),
    },
    "calibrate_quantize_compare": {
        **calibration(),
        **comparison("nearest", 40, {"format": "float8_e4m3fn", "rounding": "nearest"}, "nearest FP8"),
        **comparison("calibrated", 740, {"format": "float8_e4m3fn", "rounding": "calibrated"}, "calibrated FP8"),
    },
    "quantize_to_a_size": {
        **calibration(probe_steps=4),
        **comparison("profile", 40, PROFILE | CALIBRATED, "layers chosen by the profile"),
        **comparison("chosen", 740, SIZED | CALIBRATED, "layers chosen by sensitivity"),
    },
    "quantize_text_encoder": {
        "encoder": Node(
            type="CalibratedRoundingLoadExampleTextEncoder",
            pos=(40, 40),
            size=(320, 60),
            values={"file": "digits_gemma2.safetensors"},
        ),
        "model": replace(LOADER, pos=(40, 190)),
        **latent_and_vae(350),
        "calibrate": Node(
            type="CalibratedRoundingCalibrateTextEncoder",
            pos=(420, 40),
            size=(340, 340),
            values={"prompts": CALIBRATION_PROMPTS},
            links={"clip": ("encoder", 0)},
            title="Record the layers' inputs",
        ),
        "quantize": Node(
            type="CalibratedRoundingQuantizeTextEncoder",
            pos=(800, 40),
            size=(360, 640),
            values={"format": "float8_e4m3fn", "rounding": "calibrated"},
            links={"clip": ("encoder", 0), "calibration": ("calibrate", 0)},
        ),
        **QUANTIZED_PROMPT,
        **FLOAT_PROMPT,
        **sampling(("model", 0), "quantized", 1600, 40, "With the quantized encoder", QUANTIZED_CONDITIONINGS),
        **sampling(("model", 0), "float", 1600, 400, "With the float encoder", FLOAT_CONDITIONINGS),
        "save": Node(
            type="CalibratedRoundingSaveTextEncoder",
            pos=(420, 440),
            size=(340, 100),
            values={"filename_prefix": "clip/digits_gemma2_fp8"},
            links={"clip": ("quantize", 0)},
        ),
        "path": Node(
            type="PreviewAny",
            pos=(420, 660),
            size=(340, 130),
            values={},
            links={"source": ("save", 0)},
            title="The file",
        ),
        "report": Node(
            type="PreviewAny",
            pos=(1220, 760),
            size=(700, 280),
            values={},
            links={"source": ("quantize", 1)},
            title="Layer by layer",
        ),
    },
    "sample_saved_file": {
        "model": Node(
            type="UNETLoader",
            pos=(40, 40),
            size=(320, 90),
            values={"unet_name": "digits_int8_00001_.safetensors"},
            title="The file that quantize_and_save wrote",
        ),
        **digit_inputs(190),
        **sampling(("model", 0), "saved", 420, 40, "Sample with stock nodes"),
    },
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(find_host(), Path(folder)) as server:
        for name, nodes in WORKFLOWS.items():
            workflow = ui_format(name, nodes, server)
            (EXAMPLES / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
            graph = api_format(workflow)
            shown = draw(graph, server) or draw(sample_newest_file(server), server)
            sheet = make_thumbnail([[server.image(image) for image in images] for images in shown])
            sheet.save(EXAMPLES / f"{name}.jpg", quality=90)


def draw(graph: Mapping[str, Any], server: Server) -> list[list[dict[str, str]]]:
    """Run a workflow; returns the pictures of each node that shows some."""
    return [output["images"] for output in server.execute(graph).values() if "images" in output]


def sample_newest_file(server: Server) -> dict[str, Any]:
    """Make a workflow of stock nodes that samples the newest model file."""
    newest = max(server.output.glob("diffusion_models/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    sampling = api_format(ui_format("sample_saved_file", WORKFLOWS["sample_saved_file"], server))
    loader = next(node for node in sampling.values() if node["class_type"] == "UNETLoader")
    loader["inputs"]["unet_name"] = newest.name
    return sampling


def make_thumbnail(nodes: list[list[bytes]]) -> Image.Image:
    """Arrange as many of each node's pictures as fill about a square, the shape of the template browser's cards."""
    pictures = [[Image.open(io.BytesIO(file)).convert("RGB") for file in files] for files in nodes]
    aspect = pictures[0][0].width / pictures[0][0].height
    columns = 2 if aspect < 2 else 1
    each = max(1, columns * round(columns * aspect) // len(nodes))
    shown = [picture for row in pictures for picture in row[:each]]
    width = THUMBNAIL_WIDTH // columns
    height = round(width / aspect)
    sheet = Image.new("RGB", (THUMBNAIL_WIDTH, len(shown) // columns * height))
    for i, picture in enumerate(shown):
        large = picture.resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(large, (i % columns * width, i // columns * height))
    return sheet


def ui_format(name: str, nodes: Mapping[str, Node], server: Server) -> dict[str, Any]:
    """Convert a workflow to the format that the front end stores."""
    ids = {key: i + 1 for i, key in enumerate(nodes)}
    info = {node.type: server.object_info(node.type) for node in nodes.values()}
    ui_nodes = {key: _ui_node(ids[key], i, node, info[node.type]) for i, (key, node) in enumerate(nodes.items())}
    links: list[list[Any]] = []
    for key, node in nodes.items():
        for target, (source, slot) in node.links.items():
            names = [entry["name"] for entry in ui_nodes[key]["inputs"]]
            output = ui_nodes[source]["outputs"][slot]
            link = [len(links) + 1, ids[source], slot, ids[key], names.index(target), output["type"]]
            ui_nodes[key]["inputs"][link[4]]["link"] = link[0]
            output["links"].append(link[0])
            links.append(link)
    return {
        "revision": 0,
        "last_node_id": len(ids),
        "last_link_id": len(links),
        "nodes": list(ui_nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _ui_node(number: int, order: int, node: Node, info: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    sockets = [(name, spec[0]) for name, spec in inputs.items() if not _is_widget(spec[0])]
    widgets = [widget for name, spec in inputs.items() for widget in _widgets(name, spec, node.values)]
    result: dict[str, Any] = {"id": number, "type": node.type, "pos": node.pos, "size": node.size, "flags": {}}
    result |= {"order": order, "mode": 0}
    result["inputs"] = [
        *({"name": name, "type": kind, "link": None} for name, kind in sockets),
        *({"name": name, "type": kind, "widget": {"name": name}, "link": None} for name, kind, _ in widgets if kind),
    ]
    outputs = zip(info["output_name"], info["output"], strict=True)
    result["outputs"] = [{"name": name, "type": kind, "links": []} for name, kind in outputs]
    result |= {"properties": {"Node name for S&R": node.type}, "widgets_values": [value for *_, value in widgets]}
    return result | ({"title": node.title} if node.title else {})


def _is_widget(kind: object) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def _widgets(name: str, spec: list[Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    """Yield name, type and value of a widget and of the widgets that it brings; the seed's control has no type."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if not _is_widget(kind):
        return
    choices = kind if isinstance(kind, list) else options.get("options", [None])
    dynamic = kind == "COMFY_DYNAMICCOMBO_V3"
    value = values.get(name, options.get("default", choices[0]["key"] if dynamic else choices[0]))
    yield name, "COMBO" if isinstance(kind, list) else kind, value
    if options.get("control_after_generate"):
        yield "control_after_generate", None, values["control_after_generate"]
    if dynamic:
        chosen = next(choice["inputs"] for choice in choices if choice["key"] == value)
        for child, child_spec in {**chosen.get("required", {}), **chosen.get("optional", {})}.items():
            yield from _widgets(f"{name}.{child}", child_spec, values)


if __name__ == "__main__":
    main()
