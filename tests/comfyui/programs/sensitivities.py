"""Programs of test_sensitivity.py."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import comfy.model_management as management
import folder_paths
import torch
from calibrated_rounding.nodes.host.probing import SamplingProbe
from calibrated_rounding.quant import Recipe, plan_file, quantize_file
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.planning.builder import make_plan
from calibrated_rounding.quant.planning.candidates import Evaluator
from calibrated_rounding.quant.workers.workers import Workers
from calibrated_rounding.tools.comfyui.inside.models import count_hooks, load_unet, relative_error
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension
from calibrated_rounding.tools.comfyui.inside.sampling import conditions, sample, sample_briefly
from torch import Tensor

extension = load_extension()


def measure_sensitivities(source: str, table: Tensor, output: str) -> dict[str, Any]:
    """Calibrate with and without sensitivities, and end the measurement early."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    plain = sample_briefly(model, table)
    without, text_without = calibrate(model, table, digits=2, steps=4, runs=1)
    calibration, text = calibrate(model, table, digits=2, steps=4, runs=1, probe_steps=2)
    result = {
        "layers": list(calibration),
        "sensitivities": calibration.sensitivities,
        "text_without": text_without,
        "text": text,
        "same_rows": replace(calibration, sensitivities={}).digest == without.digest,
        "equal_after": torch.equal(plain, sample_briefly(model, table)),
        "hooks_left": count_hooks(model.model),
        "error": fail_while_probing(ValueError("broken"), model, table),
        "interrupt": fail_while_probing(management.InterruptProcessingException(), model, table),
        "equal_after_failures": torch.equal(plain, sample_briefly(model, table)),
    }
    loaded, text_loaded = save_and_load(calibration, "probed")
    partial = replace(calibration, sensitivities=dict(list(calibration.sensitivities.items())[2:]))
    return {
        **result,
        "text_loaded": text_loaded,
        "round_trip": loaded.digest == calibration.digest and loaded.sensitivities == calibration.sensitivities,
        "text_partial": save_and_load(partial, "partial")[1],
    }


def calibrate(model: Any, table: Tensor, *, digits: int = 10, steps: int = 20, runs: int = 2, **settings: Any) -> Any:
    """Execute Calibrate Model; returns the calibration and its report."""
    latent = {"samples": torch.zeros(digits, 16, 1, 8, 8)}
    settings = {"sampler_name": "euler", "scheduler": "simple", "rows": 2048, "budget_gib": 2.0, **settings}
    return call(
        extension.CalibrateModel, model=model, **conditions(table, digits), latent_image=latent, seed=1000, runs=runs,
        steps=steps, cfg=3.0, **settings,
    ).args  # fmt: skip


def save_and_load(calibration: Any, name: str) -> Any:
    """Save a calibration; returns the loaded calibration and its report."""
    path = call(extension.SaveCalibration, calibration=calibration, name=name).args[0]
    return call(extension.LoadCalibration, file=os.path.basename(path)).args


def fail_while_probing(raised: BaseException, model: Any, table: Tensor) -> dict[str, Any]:
    """Raise an exception in the second sampling of a probe."""
    hooks = list[int]()

    def fail(*_: Any) -> None:
        hooks.append(count_hooks(model.model))
        raise raised

    def sample_or_fail(patcher: Any, index: int) -> Tensor:
        if index == 0:
            return sample_briefly(patcher, table)
        handle = model.model.diffusion_model.head.head.register_forward_pre_hook(fail)
        try:
            return sample_briefly(patcher, table)
        finally:
            handle.remove()

    result = {"hooks_during": 0, "raised": False}
    try:
        SamplingProbe(model).measure(["blocks.0.ffn.0"], sample_or_fail)
    except BaseException as error:
        result = {"hooks_during": hooks[0], "raised": error is raised}
    return {**result, "hooks_left": count_hooks(model.model)}


def choose_by_sensitivity(source: str, table: Tensor, output: str, fmt: str, layers: list[str]) -> dict[str, Any]:
    """Compare each layer's cost with its effect on latents, and formats chosen in three ways at one size."""
    folder_paths.set_output_directory(output)
    model, _ = load_unet(source)
    calibration, _ = calibrate(model, table, probe_steps=4)
    reference = torch.stack([sample(model, table, seed) for seed in range(2)])

    def latent_error(statistics: Any, recipe: Recipe, seeds: int = 2) -> float:
        path = f"{output}/quantized.safetensors"
        quantize_file(source, path, recipe, statistics=statistics)
        quantized, _ = load_unet(path)
        latents = torch.stack([sample(quantized, table, seed) for seed in range(seeds)])
        return relative_error(latents, reference[:seeds])

    weights = StateDictSource(dict(model.model.diffusion_model.state_dict()))
    profile = Recipe(format=fmt, rounding="calibrated")
    size = plan_file(source, profile).nbytes / 1e9
    chosen = Recipe(format="auto", formats=(fmt,), rounding="calibrated", target_gb=size)
    return {
        "costs": [cost_of(weights, layer, fmt, calibration) for layer in layers],
        "latent_errors": [latent_error(calibration, quantize_only(layer, fmt), seeds=1) for layer in layers],
        "profile": latent_error(calibration, profile),
        "by_output_error": latent_error(replace(calibration, sensitivities={}), chosen),
        "by_sensitivity": latent_error(calibration, chosen),
    }


def quantize_only(layer: str, fmt: str) -> Recipe:
    """A recipe that quantizes one layer."""
    name = re.escape(layer)
    return Recipe(format=fmt, rounding="calibrated", exclude=(f"^(?!{name}$)",), overrides=((f"^{name}$", fmt),))


def cost_of(weights: StateDictSource, layer: str, fmt: str, calibration: Any) -> float:
    """The cost that `auto` expects of quantizing one layer."""
    recipe, key = quantize_only(layer, fmt), f"{layer}.weight"
    plan = make_plan(weights.tensors, recipe, calibration)
    evaluator = Evaluator(recipe=recipe, workers=Workers(), check_cancelled=lambda: None, by_sensitivity=True)
    candidate = evaluator.measure({key: [plan.layers[key]]}, weights.read)[key][0]
    return float(candidate.cost)
