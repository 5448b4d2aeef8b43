"""The example workflows as data: what each shows, and its nodes in columns of groups.

The number of a template is the digit that it draws, so that no two look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from example_prompts import SEEN, fill_template

Link = tuple[str, int]
"""Key of the source node, and its output slot."""

NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NO_DIGIT, PICTURES = 10, 4

NARROW, WIDE = 320, 380
"""Widths of nodes in pixels."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a workflow."""

    type: str
    size: tuple[int, int]
    """In pixels."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """By widget; the others have their defaults."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """By input."""
    title: str | None = None


@dataclass(frozen=True)
class Group:
    """Nodes one above the other, in a frame."""

    title: str
    nodes: Mapping[str, Node]


Column = tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class Template:
    """A workflow of the template browser."""

    title: str
    note: str
    """Markdown: what the workflow shows, and what to change."""
    columns: tuple[Column, ...]

    @property
    def nodes(self) -> dict[str, Node]:
        """All nodes by their keys."""
        return {key: node for column in self.columns for group in column for key, node in group.nodes.items()}


STEPS = {"steps": 20, "cfg": 3.0, "scheduler": "simple"}
QUANTIZE = "CalibratedRoundingQuantizeModel"
FP8, ROTATED, CALIBRATED = {"format": "float8_e4m3fn"}, {"format": "int8_convrot"}, {"rounding": "calibrated"}
SIZED = {
    "format": "auto",
    "format.formats": "int8_convrot",
    "format.target": "share",
    "format.target.target_share": 0.68,
}
"""No larger than with the profile."""
CALIBRATION_PROMPTS = "\n".join(fill_template(template, i % 10, numeral=i >= 10) for i, template in enumerate(SEEN))

LOADER = Node(type="UNETLoader", size=(NARROW, 90), values={"unet_name": "digits_wan.safetensors"})
LOAD = Group("Load the float model", {"model": LOADER})


def preview(source: Link, title: str, size: tuple[int, int]) -> Node:
    return Node(type="PreviewAny", size=size, links={"source": source}, title=title)


def report(source: Link, size: tuple[int, int] = (WIDE, 300)) -> Node:
    return preview(source, "Report, layer by layer", size)


def path_of(save: str) -> Node:
    return preview((save, 0), "The file", (WIDE, 130))


def latent_and_vae(pictures: int = PICTURES) -> dict[str, Node]:
    """An empty latent, and the decoder."""
    size = {"width": 64, "height": 64, "length": 1, "batch_size": pictures}
    return {
        "latent": Node(type="EmptyHunyuanLatentVideo", size=(NARROW, 140), values=size),
        "vae": Node(type="VAELoader", size=(NARROW, 60), values={"vae_name": "digits_vae.safetensors"}),
    }


def to_draw(digit: int, pictures: int = PICTURES) -> Group:
    """Inputs of sampling beside the model: the class, no class, an empty latent, the decoder."""

    def load(index: int, title: str) -> Node:
        values = {"table": "digits_conditioning.safetensors", "class_index": index}
        return Node(type="CalibratedRoundingLoadClassConditioning", size=(NARROW, 90), values=values, title=title)

    digits = {"digit": load(digit, "The digit to draw"), "nothing": load(NO_DIGIT, "No digit")}
    return Group("What to draw", {**digits, **latent_and_vae(pictures)})


def sampler_links(**models: Link) -> dict[str, Link]:
    """Links of a node that samples what `to_draw` describes."""
    return {**models, "positive": ("digit", 0), "negative": ("nothing", 0), "latent_image": ("latent", 0)}


def sampling(title: str, model: Link, name: str, conditionings: Mapping[str, Link] | None = None) -> Group:
    """A sampler, a decoder and an image.

    Args:
        title: Of the group.
        model: Node and slot of the MODEL.
        name: Prefix of the nodes' keys, and of the image's file name.
        conditionings: Links of the sampler's conditionings; by default to the nodes of `to_draw`.
    """
    values = {"seed": 1, "control_after_generate": "fixed", **STEPS}
    links = sampler_links(model=model) | (conditionings or {})
    decoded = {"samples": (f"{name} sampler", 0), "vae": ("vae", 0)}
    images, prefix = {"images": (f"{name} decoder", 0)}, {"filename_prefix": name}
    return Group(
        title,
        {
            f"{name} sampler": Node(type="KSampler", size=(NARROW, 270), values=values, links=links),
            f"{name} decoder": Node(type="VAEDecode", size=(NARROW, 60), links=decoded),
            f"{name} image": Node(type="SaveImage", size=(NARROW, 320), values=prefix, links=images),
        },
    )


def prompts(title: str, encoder: Link, name: str, digit: int) -> tuple[Group, dict[str, Link]]:
    """The prompt and an empty prompt, and the links of a sampler's conditionings."""
    keys = {"positive": f"{name} prompt", "negative": f"{name} nothing"}
    texts = {"positive": f"a handwritten {NUMERALS[digit]}", "negative": ""}
    nodes = {
        key: Node(
            type="CLIPTextEncode",
            size=(NARROW, 120),
            values={"text": texts[side]},
            links={"clip": encoder},
            title=key.capitalize(),
        )
        for side, key in keys.items()
    }
    return Group(title, nodes), {side: (key, 0) for side, key in keys.items()}


def calibration(digit: int, probe_steps: int = 0) -> tuple[Column, ...]:
    """The float model, the inputs of sampling, and a calibration at other seeds than the comparison's."""
    settings = {"seed": 1000, "control_after_generate": "fixed", "runs": 4, "probe_steps": probe_steps, **STEPS}
    links = sampler_links(model=("model", 0))
    node = Node(type="CalibratedRoundingCalibrateModel", size=(WIDE, 420), values=settings, links=links)
    return (LOAD, to_draw(digit, pictures=1)), (Group("Calibrate at other seeds", {"calibrate": node}),)


def comparison(name: str, values: Mapping[str, Any], title: str) -> Column:
    """A model quantized with ``values`` and compared with the float model; ``name`` is the key of its node."""
    links: dict[str, Link] = {"model": ("model", 0)}
    if values.get("rounding") == "calibrated":
        links["calibration"] = ("calibrate", 0)
    compared = sampler_links(reference=("model", 0), candidate=(name, 0)) | {"vae": ("vae", 0)}
    compare, settings = "CalibratedRoundingCompareModels", {"seeds": "1-4", **STEPS}
    return (
        Group(title, {name: Node(type=QUANTIZE, size=(WIDE, 640), values=values, links=links)}),
        Group(
            "How close is it?",
            {f"{name} compared": Node(type=compare, size=(WIDE, 740), values=settings, links=compared)},
        ),
        Group(
            "Seed by seed, step by step",
            {f"{name} report": preview((f"{name} compared", 1), "Comparison", (WIDE, 360))},
        ),
    )


def quantize(title: str, values: Mapping[str, Any], height: int, **links: Link) -> Group:
    node = Node(type=QUANTIZE, size=(WIDE, height), values=values, links={"model": ("model", 0), **links})
    return Group(title, {"quantize": node})


def drawn(title: str, model: Link, encoder: Link, name: str, digit: int) -> Column:
    """Prompts that an encoder reads, and the pictures that a model draws from them."""
    group, links = prompts(title, encoder, name, digit)
    return group, sampling("Drawn", model, name, links)


TEXT_ENCODER = Node(
    type="CalibratedRoundingLoadExampleTextEncoder", size=(NARROW, 60), values={"file": "digits_gemma2.safetensors"}
)

TEMPLATES = (
    Template(
        title="Quantize and sample",
        note="**Quantize a model and sample with it at once.** The shipped digits model is quantized to INT8 with "
        "rotation; both models draw the same seeds, so that you see how close they are.\n\n"
        "**Change**: the *format* of Quantize Model; then your own model, its text encoder, latent and VAE.",
        columns=(
            (LOAD, to_draw(1)),
            (
                quantize("Quantize", ROTATED, 480),
                Group("What was done", {"report": report(("quantize", 1))}),
            ),
            (sampling("Sample the quantized model", ("quantize", 0), "int8"),),
            (sampling("Sample the float model", ("model", 0), "float"),),
        ),
    ),
    Template(
        title="Quantize and save",
        note="**Write a quantized file.** Load Diffusion Model loads it from then on, without a quantize node: see the "
        "next template.\n\n**Change**: the model, the *format*, the name. Keep `diffusion_models/` in front, so that "
        "the loader lists the file.",
        columns=(
            (LOAD,),
            (quantize("Quantize", ROTATED, 480),),
            (
                Group(
                    "Save",
                    {
                        "save": Node(
                            type="CalibratedRoundingSaveModel",
                            size=(WIDE, 220),
                            values={"filename_prefix": "diffusion_models/digits_int8"},
                            links={"model": ("quantize", 0)},
                        ),
                        "path": path_of("save"),
                    },
                ),
                Group("What was done", {"report": report(("quantize", 1))}),
            ),
        ),
    ),
    Template(
        title="Sample a saved file",
        note="**Stock nodes load and sample a quantized file.** Run the template *Quantize and save* first: it writes "
        "the file.\n\n**Change**: the file, if you gave it another name.",
        columns=(
            (
                Group(
                    "Load the quantized file",
                    {"model": replace(LOADER, values={"unet_name": "digits_int8_00001_.safetensors"})},
                ),
                to_draw(3),
            ),
            (sampling("Sample", ("model", 0), "saved"),),
        ),
    ),
    Template(
        title="Quantize a file",
        note="**One node makes a file**: pick a file and run. It is read, quantized and written layer by layer; the "
        "model is never loaded.\n\n**Change**: the *file*, the *preset*, the *name*. A calibration makes it closer.",
        columns=(
            (
                Group(
                    "Quantize a file",
                    {
                        "quantize": Node(
                            type="CalibratedRoundingQuantizeFile",
                            size=(WIDE, 640),
                            values={
                                "file": "diffusion_models/digits_wan.safetensors",
                            },
                        )
                    },
                ),
            ),
            (Group("What was done", {"path": path_of("quantize"), "report": report(("quantize", 1), (WIDE, 420))}),),
        ),
    ),
    Template(
        title="Calibrate and quantize",
        note="**Round against real inputs.** Record Calibration watches the float model while you sample as usual; "
        "calibrated rounding then keeps the outputs close, not the weights.\n\n"
        "**Change**: queue again with other prompts and seeds to widen the sample; then the *format*.",
        columns=(
            (LOAD, to_draw(5)),
            (
                Group(
                    "Record the layers' inputs",
                    {
                        "record": Node(
                            type="CalibratedRoundingRecordCalibration",
                            size=(NARROW, 120),
                            links={"model": ("model", 0)},
                        ),
                        "collect": Node(
                            type="CalibratedRoundingCollectCalibration",
                            size=(NARROW, 150),
                            links={"recorder": ("record", 1), "after": ("float sampler", 0)},
                        ),
                        "recorded": preview(("collect", 1), "The recording", (NARROW, 160)),
                    },
                ),
            ),
            (sampling("Sample the float model as usual", ("record", 0), "float"),),
            (quantize("Round with the calibration", FP8 | CALIBRATED, 640, calibration=("collect", 0)),),
            (sampling("Sample the quantized model", ("quantize", 0), "calibrated"),),
            (Group("What was done", {"report": report(("quantize", 1), (800, 480))}),),
        ),
    ),
    Template(
        title="Compare nearest and calibrated",
        note="**What calibrated rounding gains**, in decibels at seeds that the calibration has not seen: 6 dB more is "
        "half the difference.\n\n**Change**: the *format* of both Quantize Model nodes, and the *seeds*.",
        columns=(
            *calibration(6),
            comparison("nearest", FP8 | {"rounding": "nearest"}, "Nearest FP8"),
            comparison("calibrated", FP8 | CALIBRATED, "Calibrated FP8"),
        ),
    ),
    Template(
        title="Fit a size",
        note="**The closest model within a size.** Calibrate Model also measures how much each layer matters "
        "(*probe_steps*); the format *auto* then spends the bytes where they count.\n\n"
        "**Change**: the *target*, in gigabytes or as a share. Full report shows the error at every size.",
        columns=(
            *calibration(7, probe_steps=4),
            comparison("profile", ROTATED | CALIBRATED, "Layers chosen by the profile"),
            comparison("chosen", SIZED | CALIBRATED, "Layers chosen by measurement"),
        ),
    ),
    Template(
        title="Quantize a text encoder",
        note="**A text encoder, calibrated on prompts.** The prompt is read by the quantized encoder and by the float "
        "one, and drawn from both.\n\n**Change**: the calibration prompts (a dozen like yours, long and short), the "
        "*format*, and the name of the file.",
        columns=(
            (
                Group(
                    "Load",
                    {
                        "encoder": TEXT_ENCODER,
                        "model": LOADER,
                        **latent_and_vae(),
                    },
                ),
            ),
            (
                Group(
                    "Calibrate on prompts",
                    {
                        "calibrate": Node(
                            type="CalibratedRoundingCalibrateTextEncoder",
                            size=(WIDE, 340),
                            values={"prompts": CALIBRATION_PROMPTS},
                            links={"clip": ("encoder", 0)},
                        )
                    },
                ),
                Group(
                    "Save",
                    {
                        "save": Node(
                            type="CalibratedRoundingSaveTextEncoder",
                            size=(WIDE, 220),
                            values={"filename_prefix": "clip/digits_gemma2_fp8"},
                            links={"clip": ("quantize", 0)},
                        ),
                        "path": path_of("save"),
                    },
                ),
            ),
            (
                Group(
                    "Round with the calibration",
                    {
                        "quantize": Node(
                            type="CalibratedRoundingQuantizeTextEncoder",
                            size=(WIDE, 640),
                            values=FP8 | CALIBRATED,
                            links={"clip": ("encoder", 0), "calibration": ("calibrate", 0)},
                        )
                    },
                ),
                Group("What was done", {"report": report(("quantize", 1))}),
            ),
            drawn("Read by the quantized encoder", ("model", 0), ("quantize", 0), "quantized", 8),
            drawn("Read by the float encoder", ("model", 0), ("encoder", 0), "float", 8),
        ),
    ),
    Template(
        title="Quantize to a size",
        note="**One size for a model and its text encoder together.** Every layer of both is measured in each format; "
        "the bytes go where they lower the errors most. Both are saved, and drawn with beside the float ones.\n\n"
        "**Change**: *gigabytes*, to what your card has room for. Link calibrations of both for a closer result.",
        columns=(
            (
                Group(
                    "Load",
                    {"encoder": TEXT_ENCODER, "model": LOADER, **latent_and_vae()},
                ),
            ),
            (
                Group(
                    "Quantize both",
                    {
                        "quantize": Node(
                            type="CalibratedRoundingQuantizeToSize",
                            size=(WIDE, 340),
                            values={"gigabytes": 0.0038},
                            links={"model": ("model", 0), "clip": ("encoder", 0)},
                        )
                    },
                ),
                Group(
                    "Save both",
                    {
                        "save": Node(
                            type="CalibratedRoundingSaveModel",
                            size=(WIDE, 220),
                            values={"filename_prefix": "diffusion_models/digits_sized"},
                            links={"model": ("quantize", 0)},
                        ),
                        "save encoder": Node(
                            type="CalibratedRoundingSaveTextEncoder",
                            size=(WIDE, 220),
                            values={"filename_prefix": "clip/digits_gemma2_sized"},
                            links={"clip": ("quantize", 1)},
                        ),
                    },
                ),
            ),
            (Group("What was done", {"report": report(("quantize", 2), (WIDE + 120, 640))}),),
            drawn("Read by the quantized encoder", ("quantize", 0), ("quantize", 1), "quantized", 9),
            drawn("Read by the float encoder", ("model", 0), ("encoder", 0), "float", 9),
        ),
    ),
)
NAMES = {f"{number} {template.title}": template for number, template in enumerate(TEMPLATES, 1)}
"""Name of the file -> template; the template browser sorts by it and shows it."""
