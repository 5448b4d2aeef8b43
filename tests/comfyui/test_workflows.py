"""The shipped example workflows, run by a real server with nothing in its folders but the pack."""

from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from calibrated_rounding.quant import Recipe, plan_file
from calibrated_rounding.tools.comfyui import PACK, PACK_NAME, Server
from calibrated_rounding.tools.comfyui.workflows import api_format, table
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

EXAMPLES = PACK / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))


def read_workflow(title: str) -> dict[str, Any]:
    (path,) = EXAMPLES.glob(f"? {title}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def digit_of(title: str) -> int:
    """The digit that a template draws: its number."""
    return next(int(name[0]) for name in NAMES if name[2:] == title)


def shown_by(outputs: dict[str, Any], graph: dict[str, Any], class_type: str) -> list[dict[str, Any]]:
    """List what each node of a type shows, in the order of the workflow."""
    return [outputs[node] for node in graph if graph[node]["class_type"] == class_type]


@pytest.fixture(scope="module")
def handwriting() -> np.ndarray:
    """Mean of the real digits, ``[10, 8, 8]`` in [0, 1]."""
    real = load_digits()
    return np.stack([real.images[real.target == digit].mean(0) / 16 for digit in range(10)])


def classify_digits(server: Server, handwriting: np.ndarray, images: list[dict[str, str]]) -> list[int]:
    """Find for each image the digit whose mean over real handwriting is nearest."""
    files = (io.BytesIO(server.image(image)) for image in images)
    small = (Image.open(file).convert("L").resize((8, 8), Image.Resampling.BOX) for file in files)
    return [int(((handwriting - np.asarray(picture) / 255) ** 2).sum((1, 2)).argmin()) for picture in small]


@pytest.fixture(scope="module")
def saved(server: Server) -> Path:
    """The file that *Quantize and save* writes."""
    graph = api_format(read_workflow("Quantize and save"))
    path, report = shown_by(server.execute(graph), graph, "PreviewAny")
    assert "layers quantized" in report["text"][0]
    return Path(path["text"][0])


def test_template_browser_lists_workflows_with_pictures(server: Server) -> None:
    assert sorted(server.get("/workflow_templates")[PACK_NAME]) == NAMES
    for name in NAMES:
        address = f"/api/workflow_templates/{PACK_NAME}/{quote(name)}"
        assert json.loads(server.get_bytes(f"{address}.json")) == read_workflow(name[2:])
        Image.open(io.BytesIO(server.get_bytes(f"{address}.jpg"))).verify()


def test_no_two_thumbnails_are_alike() -> None:
    pictures = [np.asarray(Image.open(EXAMPLES / f"{name}.jpg").convert("L").resize((64, 64)), float) for name in NAMES]
    for one, other in combinations(pictures, 2):
        assert np.abs(one - other).mean() > 10


@pytest.mark.parametrize("name", NAMES)
def test_every_template_has_note_and_groups(name: str) -> None:
    workflow = read_workflow(name[2:])
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert "**Change**" in note["widgets_values"][0]
    assert len(workflow["groups"]) >= 2


def test_quantize_and_sample_draws_digits(server: Server, handwriting: np.ndarray) -> None:
    graph = api_format(read_workflow("Quantize and sample"))
    quantized, floats = shown_by(server.execute(graph), graph, "SaveImage")
    for images in (quantized["images"], floats["images"]):
        assert len(images) == 4
        assert classify_digits(server, handwriting, images).count(digit_of("Quantize and sample")) >= 3
    different = [server.image(a) != server.image(b) for a, b in zip(quantized["images"], floats["images"], strict=True)]
    assert any(different), "the quantized model must not be the float model"


def test_calibrate_quantize_sample_draws_digits(server: Server, handwriting: np.ndarray) -> None:
    graph = api_format(read_workflow("Calibrate and quantize"))
    outputs = server.execute(graph)
    floats, quantized = shown_by(outputs, graph, "SaveImage")
    for images in (floats["images"], quantized["images"]):
        assert classify_digits(server, handwriting, images).count(digit_of("Calibrate and quantize")) >= 3
    (shown,) = shown_by(outputs, graph, "CalibratedRoundingQuantizeModel")
    layers = table(shown["calibrated_rounding"][0]["layers"])
    assert all(layer["errors"]["output_w8a8"] is not None for layer in layers)


def test_calibrate_quantize_compare_gains_psnr(server: Server) -> None:
    graph = api_format(read_workflow("Compare nearest and calibrated"))
    nearest, calibrated = shown_by(server.execute(graph), graph, "CalibratedRoundingCompareModels")
    assert len(nearest["images"]) == len(calibrated["images"]) == 4
    assert mean_psnr(calibrated) >= mean_psnr(nearest) + 5


def test_quantize_to_a_size_beats_profile(server: Server) -> None:
    graph = api_format(read_workflow("Fit a size"))
    outputs = server.execute(graph)
    profile, chosen = shown_by(outputs, graph, "CalibratedRoundingCompareModels")
    assert mean_psnr(chosen) >= mean_psnr(profile) + 1
    by_profile, by_measurement = shown_by(outputs, graph, "CalibratedRoundingQuantizeModel")
    sizes = [shown["calibrated_rounding"][0]["totals"]["bytes_after"] for shown in (by_profile, by_measurement)]
    assert sizes[1] <= sizes[0] * 1.01


def mean_psnr(shown: dict[str, Any]) -> float:
    """Read the mean from the last line that Compare Models shows."""
    last: str = shown["text"][0].splitlines()[-1]
    return float(last.removeprefix("mean").split()[0])


def test_quantize_text_encoder_draws_digits(server: Server, handwriting: np.ndarray) -> None:
    graph = api_format(read_workflow("Quantize a text encoder"))
    outputs = server.execute(graph)
    quantized, floats = shown_by(outputs, graph, "SaveImage")
    for shown in (quantized, floats):
        assert classify_digits(server, handwriting, shown["images"]).count(digit_of("Quantize a text encoder")) >= 3
    assert (read_pixels(server, quantized) != read_pixels(server, floats)).any()
    path, report = shown_by(outputs, graph, "PreviewAny")
    assert "21 layers quantized" in report["text"][0]
    again, image = with_saved_encoder(graph, Path(path["text"][0]).name)
    assert (read_pixels(server, server.execute(again)[image]) == read_pixels(server, quantized)).all()


def test_quantize_to_a_size_draws_digits(server: Server, handwriting: np.ndarray) -> None:
    graph = api_format(read_workflow("Quantize to a size"))
    outputs = server.execute(graph)
    quantized, floats = shown_by(outputs, graph, "SaveImage")
    for shown in (quantized, floats):
        assert classify_digits(server, handwriting, shown["images"]).count(digit_of("Quantize to a size")) >= 3
    assert (read_pixels(server, quantized) != read_pixels(server, floats)).any()
    (shown,) = shown_by(outputs, graph, "CalibratedRoundingQuantizeToSize")
    (size,) = (node["inputs"] for node in graph.values() if node["class_type"].endswith("QuantizeToSize"))
    assert shown["calibrated_rounding"][0]["totals"]["bytes_after"] <= size["gigabytes"] * 1e9
    for kind in ("SaveModel", "SaveTextEncoder"):
        (saved,) = shown_by(outputs, graph, f"CalibratedRounding{kind}")
        (file,) = saved["calibrated_rounding"][0]["files"]
        assert Path(file["path"]).is_file()


def read_pixels(server: Server, shown: dict[str, Any]) -> np.ndarray:
    """Read the pictures that an image node shows, without the workflow in their files."""
    return np.stack([np.asarray(Image.open(io.BytesIO(server.image(image)))) for image in shown["images"]])


def with_saved_encoder(graph: dict[str, Any], file: str) -> tuple[dict[str, Any], str]:
    """Replace the float encoder by a saved one; returns the nodes that draw with it, and the node that shows them."""
    loader = next(name for name in graph if graph[name]["class_type"].endswith("LoadExampleTextEncoder"))
    _, image = (name for name in graph if graph[name]["class_type"] == "SaveImage")
    return {**upstream(graph, image), loader: {**graph[loader], "inputs": {"file": file}}}, image


def upstream(graph: dict[str, Any], name: str) -> dict[str, Any]:
    """Collect a node and everything that it depends on."""
    links = [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return {name: graph[name]} | {key: node for link in links for key, node in upstream(graph, link).items()}


def test_quantize_and_save_writes_listed_file(server: Server, saved: Path) -> None:
    assert saved.is_relative_to(server.output)
    recipe = Recipe(format="int8_convrot")
    planned = plan_file(next(EXAMPLES.rglob("digits_wan.safetensors")), recipe).layers
    codes = {key for key, tensor in load_file(saved).items() if tensor.dtype == torch.int8}
    assert codes == planned.keys()
    assert saved.name in server.object_info("UNETLoader")["input"]["required"]["unet_name"][0]


def test_quantize_a_file_draws_digits_with_stock_nodes(server: Server, handwriting: np.ndarray) -> None:
    graph = api_format(read_workflow("Quantize a file"))
    path, report = shown_by(server.execute(graph), graph, "PreviewAny")
    written = Path(path["text"][0])
    assert written.is_relative_to(server.output)
    assert "layers quantized" in report["text"][0]
    sampling = api_format(read_workflow("Sample a saved file"))
    (loader,) = (node for node in sampling.values() if node["class_type"] == "UNETLoader")
    loader["inputs"]["unet_name"] = written.name
    (shown,) = shown_by(server.execute(sampling), sampling, "SaveImage")
    assert classify_digits(server, handwriting, shown["images"]).count(digit_of("Sample a saved file")) >= 3


@pytest.mark.usefixtures("saved")
def test_saved_file_draws_digits_with_stock_nodes(server: Server, handwriting: np.ndarray) -> None:
    graph = api_format(read_workflow("Sample a saved file"))
    (shown,) = shown_by(server.execute(graph), graph, "SaveImage")
    assert classify_digits(server, handwriting, shown["images"]).count(digit_of("Sample a saved file")) >= 3


def test_workflows_store_every_widget(server: Server) -> None:
    """A node that gains a widget shifts the stored values; tools/example_workflows.py writes them again."""
    for name in NAMES:
        for node in api_format(read_workflow(name[2:])).values():
            info = server.object_info(node["class_type"])["input"]
            declared = {**info.get("required", {}), **info.get("optional", {})}
            assert node["inputs"].keys() >= {key for key, spec in declared.items() if "default" in spec_options(spec)}


def spec_options(spec: list[Any]) -> dict[str, Any]:
    return spec[1] if len(spec) > 1 else {}
