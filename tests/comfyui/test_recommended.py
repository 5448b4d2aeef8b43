"""The recommended format in a real ComfyUI: on the page before the run, and in the file after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import Recipe, plan_file
from calibrated_rounding.quant.calibration.collector import Collector
from calibrated_rounding.quant.calibration.statistics import fingerprint
from calibrated_rounding.quant.planning.recommendation import CLOSENESS, ROUNDED_INPUTS
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tools.comfyui import HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import model_loader, pack_node
from safetensors.torch import load_file

DIGITS = example_model("digits_wan.safetensors")
FILE = f"diffusion_models/{DIGITS.name}"
WIDGETS = {"file": FILE, "format": "recommended", "format.preset": "balanced", "profile": "auto", "rounding": "nearest"}


def ask(server: Server, recorded: bool | str = False, calibration: bool = False, **widgets: Any) -> dict[str, Any]:
    """Ask the check route about the node Quantize."""
    values = WIDGETS | {name.replace("__", "."): value for name, value in widgets.items()}
    body = {"values": values, "file": None, "whole": True, "calibration": calibration, "recorded": recorded}
    answer: dict[str, Any] = server.post("/calibrated_rounding/check", body)
    return answer


def reasons(answer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["kind"]: entry["values"] for entry in answer["notices"]}


def quantize(server: Server, name: str, **inputs: Any) -> dict[str, Any]:
    """Run the node Quantize; returns the recipe in the file."""
    values = WIDGETS | {"name": name} | {key.replace("__", "."): value for key, value in inputs.items()}
    server.execute({"1": pack_node("QuantizeFile", **values)})
    provenance = inspect_file(find_file(server, name)).provenance
    assert provenance is not None
    return dict(provenance.recipe)


def find_file(server: Server, name: str) -> Path:
    return next((server.output / "diffusion_models").glob(f"{name}_*.safetensors"))


@pytest.fixture(scope="module")
def calibration(server: Server) -> str:
    """A saved calibration of the model, with sensitivities."""
    collector, generator, weights = Collector(rows=64), torch.Generator().manual_seed(2), load_file(DIGITS)
    layers = [layer.name for layer in plan_file(DIGITS, Recipe()).layers.values()]
    for layer in layers:
        collector.add(layer, torch.randn(64, weights[f"{layer}.weight"].shape[1], generator=generator))
    result = collector.finish({layer: fingerprint(weights[f"{layer}.weight"]) for layer in layers})
    result.sensitivities.update({layer: 1.0 for layer in layers})
    path = server.output / "calibrations" / "digits.safetensors"
    path.parent.mkdir(exist_ok=True)
    result.save(path)
    return path.name


def test_recommendation_is_first_choice_of_nodes_that_know_the_model(server: Server) -> None:
    for kind in ("QuantizeModel", "QuantizeTextEncoder", "QuantizeFile"):
        required = server.object_info(f"CalibratedRounding{kind}")["input"]["required"]
        first = required["format"][1]["options"][0]
        assert first["key"] == "recommended" and list(first["inputs"]["required"]) == ["preset"]
    recipe = server.object_info("CalibratedRoundingRecipe")["input"]["required"]
    assert "recommended" not in [option["key"] for option in recipe["format"][1]["options"]]


def test_page_is_told_choice_reasons_and_cost(server: Server) -> None:
    answer = ask(server)
    told = reasons(answer)
    assert told["recommended_fits"] | {"memory": ""} == {"format": "int8_convrot", "rounding": "nearest", "memory": ""}
    assert {"float_fits", "calibration_helps"} <= told.keys()
    assert answer["plan"]["formats"] == ["int8_convrot"] and answer["plan"]["peak"] > 2**20
    assert reasons(ask(server, rounding="calibrated", calibration=True))["recommended_fits"]["rounding"] == "calibrated"


@pytest.mark.parametrize("fmt", ["w6a8", "w4a8", "nvfp4"])
def test_few_bits_are_planned(server: Server, fmt: str) -> None:
    assert ask(server, format=fmt)["plan"]["formats"] == [fmt]
    assert ask(server, format__preset="small")["plan"]["formats"][0] in ("w4a8", "nvfp4")


def test_fp8_units_are_told(fp8_server: Server) -> None:
    fp8, int8 = ROUNDED_INPUTS["float8_e4m3fn"].nearest, CLOSENESS["int8_convrot"].nearest
    assert reasons(ask(fp8_server))["fp8_less_close"] == {"fp8": fp8, "format": "int8_convrot", "closeness": int8}


def test_file_holds_concrete_recipe(server: Server) -> None:
    assert quantize(server, "balanced") == Recipe(format="int8_convrot").to_dict()
    assert reasons(ask(server)).keys() >= {"recommended_fits"}
    assert ask(server)["plan"]["seconds"] > 0, "a run like this one has ended here"


def test_saved_calibration_is_used(server: Server, calibration: str) -> None:
    recipe = quantize(server, "by_file", calibration_file=calibration)
    assert (recipe["format"], recipe["rounding"]) == ("int8_convrot", "calibrated")
    told = reasons(ask(server, recorded=calibration, calibration=True, format__preset="best"))
    assert told.keys() >= {"recommended_layers"}
    recipe = quantize(server, "best", calibration_file=calibration, format__preset="best")
    assert (recipe["format"], recipe["formats"], recipe["rounding"]) == ("auto", ["int8_convrot"], "calibrated")
    assert find_file(server, "best").stat().st_size <= find_file(server, "by_file").stat().st_size * 1.001


def test_two_calibrations_are_refused(server: Server, calibration: str) -> None:
    graph = {
        "1": pack_node("LoadCalibration", file=calibration),
        "2": pack_node("QuantizeFile", **WIDGETS, name="two", calibration=["1", 0], calibration_file=calibration),
    }
    with pytest.raises(HostError, match="There are two calibrations: remove the link"):
        server.execute(graph)


def test_loaded_model_is_quantized_as_recommended(server: Server) -> None:
    settings = {name: value for name, value in WIDGETS.items() if name != "file"}
    graph = {
        "1": model_loader(DIGITS.name),
        "2": pack_node("QuantizeModel", model=["1", 0], **settings),
        "3": pack_node("SaveModel", model=["2", 0], filename_prefix="diffusion_models/of_model"),
    }
    server.execute(graph)
    provenance = inspect_file(find_file(server, "of_model")).provenance
    assert provenance is not None and provenance.recipe["format"] == "int8_convrot"
    wrong = graph | {"2": pack_node("QuantizeModel", model=["1", 0], **settings | {"profile": "flux"})}
    with pytest.raises(HostError, match="'flux' does not describe"):
        server.execute(wrong)


def test_model_that_is_not_known_yet_is_told(server: Server) -> None:
    values = {name: value for name, value in WIDGETS.items() if name != "file"}
    body = {"values": values, "file": None, "whole": False, "calibration": False}
    answer = server.post("/calibrated_rounding/check", body)
    assert answer["plan"] is None and "recommended_later" in reasons(answer)
