"""The nodes through ComfyUI's own server: offered to the front end, run in graphs, cached, and interrupted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tools.comfyui import HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import model_loader, pack_node, quantize_inputs, stock_node, svd_inputs
from calibrated_rounding.tools.comfyui.workflows import table
from safetensors.torch import load_file, save_file

NODES = (
    *("QuantizeModel", "QuantizeTextEncoder", "SaveModel", "SaveTextEncoder", "QuantizeFile", "Recipe", "LoadRecipe"),
    *("RecordCalibration", "CollectCalibration", "CalibrateModel", "SaveCalibration", "LoadCalibration"),
    *("CalibrateTextEncoder", "CompareModels", "QuantizeToSize", "LoadClassConditioning", "LoadExampleTextEncoder"),
)
STEPS = {"iterations": 20, "learning_rate": 0.0}


@pytest.fixture(scope="module")
def digits(server: Server) -> str:
    return server.add_model("diffusion_models", example_model("digits_wan.safetensors"), "digits.safetensors")


@pytest.mark.parametrize("name", NODES)
def test_every_node_and_input_is_described(server: Server, name: str) -> None:
    info = server.object_info(f"CalibratedRounding{name}")
    inputs = {key: spec for group in info["input"].values() for key, spec in group.items()}
    visible = {key: spec for key, spec in inputs.items() if key not in info["input"].get("hidden", {})}
    assert info["description"]
    assert info["category"].startswith("model/")
    assert all(spec[1]["tooltip"] for spec in visible.values())


def test_stock_loader_lists_example_model(server: Server) -> None:
    listed = server.object_info("UNETLoader")["input"]["required"]["unet_name"][0]
    assert "digits_wan.safetensors" in listed


def test_formats_and_profiles_are_offered(server: Server) -> None:
    required = server.object_info("CalibratedRoundingQuantizeModel")["input"]["required"]
    offered = [option["key"] for option in required["format"][1]["options"]]
    assert offered[:2] == ["recommended", "int8_convrot"]
    assert sorted(offered) == sorted([*FORMATS, "auto", "recommended"])
    assert required["profile"][1]["options"][0] == "auto"
    assert {"wan", "flux"} <= set(required["profile"][1]["options"])
    assert "t5xxl" not in required["profile"][1]["options"]


@pytest.mark.parametrize("optimizer", ["adamw", "feedback"])
def test_loader_lists_saved_model(server: Server, digits: str, optimizer: str) -> None:
    steps = {} if optimizer == "feedback" else STEPS
    graph = {
        "1": model_loader(digits),
        "2": pack_node("QuantizeModel", model=["1", 0], **quantize_inputs(**svd_inputs(optimizer, **steps))),
        "3": pack_node("SaveModel", model=["2", 0], filename_prefix=f"diffusion_models/{optimizer}"),
        "4": stock_node("PreviewAny", source=["2", 1]),
    }
    outputs = server.execute(graph)
    assert "19 layers quantized" in outputs["4"]["text"][0]
    report = outputs["2"]["calibrated_rounding"][0]
    assert report["recipe"]["svd"]["optimizer"] == optimizer
    name = Path(outputs["3"]["calibrated_rounding"][0]["files"][0]["path"]).name
    listed = server.object_info("UNETLoader")["input"]["required"]["unet_name"][0]
    assert name in listed
    written = load_file(server.output / "diffusion_models" / name)
    assert sum(key.endswith(".comfy_quant") for key in written) == len(table(report["layers"]))


def test_blockwise_files_state_requirement_and_load(server: Server, digits: str) -> None:
    settings = quantize_inputs(format="int8_blockwise")
    graph = {
        "1": model_loader(digits),
        "2": pack_node("QuantizeModel", model=["1", 0], **settings),
        "3": pack_node("SaveModel", model=["2", 0], filename_prefix="diffusion_models/blocks"),
        "4": pack_node("QuantizeFile", file=f"diffusion_models/{digits}", name="blocks_of_file", **settings),
    }
    outputs = server.execute(graph)
    for shown in ("3", "4"):
        assert "ComfyUI loads int8_blockwise only while calibrated-rounding is installed." in outputs[shown]["text"][0]
    saved = load_file(server.output / "diffusion_models" / "blocks_00001_.safetensors")
    stock = {
        "1": model_loader("blocks_00001_.safetensors"),
        "2": stock_node("ModelSave", model=["1", 0], filename_prefix="diffusion_models/stock_blocks"),
    }
    server.execute(stock)
    again = load_file(server.output / "diffusion_models" / "stock_blocks_00001_.safetensors")
    coded = [key for key in saved if key.endswith((".weight_scale", ".comfy_quant")) or saved[key].dtype == torch.int8]
    assert len(coded) == 3 * 19
    assert all(torch.equal(again[f"model.diffusion_model.{key}"], saved[key]) for key in coded)


def test_result_is_cached_on_disk(server: Server, digits: str) -> None:
    def quantize(**settings: Any) -> str:
        model = pack_node(
            "QuantizeModel", model=["1", 0], **quantize_inputs(**svd_inputs("original", **STEPS), **settings)
        )
        save = pack_node("SaveModel", model=["2", 0], filename_prefix="diffusion_models/kept")
        text: str = server.execute({"1": model_loader(digits), "2": model, "3": save})["2"]["text"][0]
        return text

    assert "nothing was rounded" not in quantize(device="auto")
    # Another value that means the same here, so that the node runs again.
    assert "nothing was rounded" in quantize(device="cpu")


def test_recipe_quantizes_file_and_model_equally(server: Server, digits: str) -> None:
    graph = {
        "1": pack_node("Recipe", **quantize_inputs(format="float8_e5m2")),
        "2": pack_node(
            "QuantizeFile", file=f"diffusion_models/{digits}", name="of_file", recipe=["1", 0], **quantize_inputs()
        ),
        "3": model_loader(digits),
        "4": pack_node("QuantizeModel", model=["3", 0], recipe=["1", 0], **quantize_inputs()),
        "5": pack_node("SaveModel", model=["4", 0], filename_prefix="diffusion_models/of_model"),
    }
    server.execute(graph)
    folder = server.output / "diffusion_models"
    of_file = load_file(next(folder.glob("of_file_*.safetensors")))
    of_model = load_file(next(folder.glob("of_model_*.safetensors")))
    assert of_file.keys() == of_model.keys()
    for key, tensor in of_file.items():
        if tensor.dtype == torch.float8_e5m2:
            assert torch.equal(tensor.view(torch.uint8), of_model[key].view(torch.uint8)), key
    again = {
        "1": pack_node("LoadRecipe", file="diffusion_models/of_file_00001_.safetensors"),
        "2": pack_node(
            "QuantizeFile", file=f"diffusion_models/{digits}", name="again", recipe=["1", 0], **quantize_inputs()
        ),
    }
    server.execute(again)
    first, second = (folder / f"{name}_00001_.safetensors" for name in ("of_file", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_wrong_profile_error_reaches_user(server: Server, digits: str) -> None:
    graph = {
        "1": model_loader(digits),
        "2": pack_node("QuantizeModel", model=["1", 0], **quantize_inputs(profile="flux")),
        "3": pack_node("SaveModel", model=["2", 0], filename_prefix="diffusion_models/never"),
    }
    with pytest.raises(HostError, match=r"ProfileError: .*'flux' does not describe"):
        server.execute(graph)


def test_name_outside_output_folder_is_refused(server: Server, digits: str) -> None:
    graph = {
        "1": pack_node("QuantizeFile", file=f"diffusion_models/{digits}", name="../../../escaped", **quantize_inputs())
    }
    with pytest.raises(HostError, match="outside the output folder"):
        server.execute(graph)
    assert not list(server.base.parent.rglob("escaped*"))


def test_interrupt_ends_prompt_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    save_file({"layer.weight": torch.randn(512, 512)}, tmp_path / "one_layer.safetensors")
    name = server.add_model("diffusion_models", tmp_path / "one_layer.safetensors")
    settings = quantize_inputs(profile="generic", **svd_inputs("adamw", iterations=10000, learning_rate=0.0))
    prompt = server.queue({"1": pack_node("QuantizeFile", file=f"diffusion_models/{name}", name="endless", **settings)})
    folder = server.output / "diffusion_models"
    while not list(folder.glob(".endless*")):
        time.sleep(0.05)
    server.interrupt()
    entry = server.wait(prompt)
    assert "execution_interrupted" in [message[0] for message in entry["status"]["messages"]]
    while list(folder.glob(".endless*")):
        time.sleep(0.05)
    assert not list(folder.glob("endless*"))
