"""Sensitivities measured by Calibrate Model in a real ComfyUI: what they leave behind, and what they are good for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibrated_rounding.tests.comfyui.harness import PACK, Host, example_model
from safetensors.torch import load_file

SETUP = """
import folder_paths, pack_nodes
import comfy.model_management as management
from pack_nodes import call
pack = pack_nodes.load(root)
folder_paths.set_output_directory(output)
model, _ = inside.load_unet(source)
inner = model.model.diffusion_model

def calibrate(classes=10, steps=20, runs=2, **settings):
    return call(
        pack.CalibrateModel, model=model, positive=[[table[:classes], {}]],
        negative=[[table[10:].expand(classes, -1, -1), {}]],
        latent_image={"samples": torch.zeros(classes, 16, 1, 8, 8)}, seed=1000, runs=runs, steps=steps, cfg=3.0,
        sampler_name="euler", scheduler="simple", rows=2048, budget_gib=2.0, **settings,
    ).args

def hooks():
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in inner.modules())
"""

CODE = (
    SETUP
    + """
from dataclasses import replace
from calibrated_rounding.nodes.host.probing import SamplingProbe

def fail(raised):
    seen = []
    def sample(patcher, index):
        def broken(*_):
            seen.append(hooks())
            raise raised
        if index == 0:
            return pack_nodes.sample(patcher, table)
        handle = inner.head.head.register_forward_pre_hook(broken)
        try:
            return pack_nodes.sample(patcher, table)
        finally:
            handle.remove()
    try:
        SamplingProbe(model).sensitivities(["blocks.0.ffn.0"], sample)
    except BaseException as error:
        return [seen[0], error is raised, hooks()]

plain = pack_nodes.sample(model, table)
without, outputs["text without"] = calibrate(2, 4, 1)
known, outputs["text"] = calibrate(2, 4, 1, probe_steps=2)
outputs["layers"], outputs["sensitivities"] = list(known), known.sensitivities
outputs["rows are the same"] = replace(known, sensitivities={}).digest == without.digest
outputs["equal after"] = torch.equal(plain, pack_nodes.sample(model, table))
outputs["hooks after"] = hooks()
outputs["error"] = fail(ValueError("broken"))
outputs["interrupt"] = fail(management.InterruptProcessingException())
outputs["equal after ends"] = torch.equal(plain, pack_nodes.sample(model, table))
path = call(pack.SaveCalibration, calibration=known, name="probed").args[0]
loaded, outputs["text loaded"] = call(pack.LoadCalibration, file=path.rsplit("/", 1)[-1]).args
outputs["round trip"] = loaded.digest == known.digest and loaded.sensitivities == known.sensitivities
some = replace(known, sensitivities=dict(list(known.sensitivities.items())[2:]))
path = call(pack.SaveCalibration, calibration=some, name="some").args[0]
outputs["text some"] = call(pack.LoadCalibration, file=path.rsplit("/", 1)[-1]).args[1]
"""
)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
    return {"root": str(PACK), "source": str(example_model("digits_wan.safetensors")), "table": table}


@pytest.fixture(scope="module")
def probed(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host.run(CODE, **inputs, output=str(tmp_path_factory.mktemp("output")))


def test_every_layer_is_probed(probed: dict[str, Any]) -> None:
    assert sorted(probed["sensitivities"]) == sorted(probed["layers"])
    assert all(value > 0 for value in probed["sensitivities"].values())


def test_probing_adds_nothing_to_the_recording_and_leaves_the_model_as_it_was(probed: dict[str, Any]) -> None:
    assert probed["rows are the same"]
    assert probed["equal after"]
    assert probed["hooks after"] == 0


@pytest.mark.parametrize("end", ["error", "interrupt"])
def test_no_hook_is_left_after_an_end_before_the_end(probed: dict[str, Any], end: str) -> None:
    hooks_during_the_run, went_through, left = probed[end]
    assert (hooks_during_the_run, went_through, left) == (2, True, 0)
    assert probed["equal after ends"]


def test_sensitivities_are_kept_in_the_file(probed: dict[str, Any]) -> None:
    assert probed["round trip"]
    assert probed["text loaded"] == probed["text"]


def test_the_report_tells_what_was_probed_and_what_to_do_about_the_rest(probed: dict[str, Any]) -> None:
    layers = probed["layers"]
    assert "Sensitivity" not in probed["text without"]
    assert f"Sensitivity measured of {len(layers)} of {len(layers)} layers." in probed["text"]
    assert f"of {len(layers) - 2} of {len(layers)} layers; not of {layers[0]}" in probed["text some"]
    assert "more probe_steps" in probed["text some"]


QUALITY_CODE = (
    SETUP
    + """
import re
from dataclasses import replace
from calibrated_rounding.quant import Recipe, plan_file, quantize_file
from calibrated_rounding.quant.planning.candidates import Evaluator
from calibrated_rounding.quant.planning.builder import make_plan
from calibrated_rounding.quant.files.sources import StateDictSource
calibration, _ = calibrate(probe_steps=4)
wanted = torch.stack([inside.sample(model, table, seed) for seed in range(2)])

def error(statistics, recipe, seeds=2):
    path = f"{output}/made.safetensors"
    quantize_file(source, path, recipe, statistics=statistics)
    made, _ = inside.load_unet(path)
    latents = torch.stack([inside.sample(made, table, seed) for seed in range(seeds)])
    return float((latents - wanted[:seeds]).norm() / wanted[:seeds].norm())

def alone(layer):
    name = re.escape(layer)
    return Recipe(
        format=fmt, rounding="calibrated", exclude=(f"^(?!{name}$)",), overrides=((f"^{name}$", fmt),)
    )

weights = StateDictSource({key: tensor for key, tensor in inner.state_dict().items()})

def cost(layer):
    recipe, key = alone(layer), f"{layer}.weight"
    plan = make_plan(weights.tensors, recipe, calibration)
    evaluator = Evaluator(recipe=recipe, device="cpu", check_cancelled=lambda: None, by_sensitivity=True)
    return evaluator.evaluate(plan.layers[key], weights.read(key)).cost

outputs["costs"] = [cost(layer) for layer in layers]
outputs["truth"] = [error(calibration, alone(layer), seeds=1) for layer in layers]

profile = Recipe(format=fmt, rounding="calibrated")
size = plan_file(source, profile).nbytes / 1e9
chosen = Recipe(format="auto", formats=(fmt,), rounding="calibrated", target_gb=size)
outputs["errors"] = {
    "profile": error(calibration, profile),
    "by outputs": error(replace(calibration, sensitivities={}), chosen),
    "by sensitivity": error(calibration, chosen),
}
"""
)
LAYERS = (
    *("time_embedding.0", "time_projection.1", "text_embedding.0", "blocks.0.self_attn.q", "blocks.0.self_attn.v"),
    *("blocks.0.cross_attn.k", "blocks.0.ffn.2", "blocks.1.cross_attn.v", "blocks.1.ffn.0", "blocks.1.ffn.2"),
)
"""Of every kind: embedders that a profile keeps, attention and feed-forward, early and late."""


@pytest.fixture(scope="module")
def sampled(host: Host, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = str(tmp_path_factory.mktemp("output"))
    return host.run(QUALITY_CODE, **inputs, timeout=600, output=output, fmt="int8_convrot", layers=LAYERS)


def rank(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).argsort().argsort().float()


def test_layers_rank_by_cost_as_by_what_they_do_to_latents(sampled: dict[str, Any]) -> None:
    ranks = torch.stack([rank(sampled["costs"]), rank(sampled["truth"])])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.9, dict(zip(LAYERS, zip(*ranks.tolist(), strict=True), strict=True))


def test_formats_chosen_by_sensitivity_sample_closer_at_the_same_size(sampled: dict[str, Any]) -> None:
    errors = sampled["errors"]
    assert errors["by sensitivity"] < 0.6 * errors["profile"]
    assert errors["by sensitivity"] < 0.75 * errors["by outputs"]
