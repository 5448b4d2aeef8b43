"""The parts of sampling.py, encoders.py and recording.py that run in ComfyUI (`Host.call` in tools/comfyui/host.py)."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import folder_paths
import torch
from calibrated_rounding.tools.comfyui.inside.models import load_unet
from calibrated_rounding.tools.comfyui.inside.pack import call, load_extension
from calibrated_rounding.tools.comfyui.inside.sampling import conditions, sample
from torch import Tensor


def read_versions() -> dict[str, str]:
    """Read the versions of the packages that compute."""
    return {package: version(package) for package in ("torch", "comfy-kitchen")}


def calibrate(source: str, table: Tensor, folder: str) -> dict[str, str]:
    """Calibrate the shipped model with its sensitivities, in two runs at other seeds than `sample_files` takes.

    Returns:
        path: The calibration file, below ``folder``.
    """
    extension = load_extension()
    folder_paths.set_output_directory(folder)
    model, _ = load_unet(source)
    calibration = call(
        extension.CalibrateModel, model=model, **conditions(table, 10),
        latent_image={"samples": torch.zeros(10, 16, 1, 8, 8)}, seed=1000, runs=2, steps=20, cfg=3.0,
        sampler_name="euler", scheduler="simple", rows=2048, budget_gib=2.0, probe_steps=4,
    ).args[0]  # fmt: skip
    return {"path": call(extension.SaveCalibration, calibration=calibration, name="digits").args[0]}


def sample_files(paths: dict[str, str], table: Tensor, seeds: int) -> dict[str, Tensor]:
    """Sample each file at the seeds 0, 1, ...: name -> latents ``[seeds, 10, 16, 1, 8, 8]``."""
    load_extension()

    def sample_file(path: str) -> Any:
        model, _ = load_unet(path)
        return torch.stack([sample(model, table, seed) for seed in range(seeds)])

    return {name: sample_file(path) for name, path in paths.items()}


def time_recording(source: str, table: Tensor, runs: int) -> dict[str, list[float]]:
    """Sample the float model in turn as it is and behind Record Calibration: seconds of each sampling."""
    extension = load_extension()
    plain, _ = load_unet(source)
    recorded = call(extension.RecordCalibration, model=plain, rows=2048, budget_gib=2.0).args[0]
    models: dict[str, Any] = {"plain": plain, "recorded": recorded}
    times: dict[str, list[float]] = {name: [] for name in models}
    for seed in range(runs + 1):
        for name, model in models.items():
            started = time.perf_counter()
            sample(model, table, seed)
            times[name].append(time.perf_counter() - started)
    return {name: seconds[1:] for name, seconds in times.items()}  # the first sampling loads the model


def calibrate_encoder(source: str, prompts: list[str], folder: str) -> dict[str, str]:
    """Calibrate the shipped text encoder on prompts.

    Returns:
        path: The calibration file, below ``folder``.
    """
    extension = load_extension()
    folder_paths.set_output_directory(folder)
    inputs = {"prompts": "\n".join(prompts), "rows": 2048, "budget_gib": 2.0}
    calibration = call(extension.CalibrateTextEncoder, clip=load_example_encoder(source), **inputs).args[0]
    return {"path": call(extension.SaveCalibration, calibration=calibration, name="encoder").args[0]}


def encode_files(paths: dict[str, str], prompts: list[str]) -> dict[str, list[Tensor]]:
    """Encode prompts with each file of the shipped text encoder: name -> hidden states ``[tokens, width]``."""
    load_extension()

    def encode_file(path: str) -> list[Tensor]:
        clip = load_example_encoder(path)
        return [clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0][0].float() for prompt in prompts]

    return {name: encode_file(path) for name, path in paths.items()}


def load_example_encoder(path: str) -> Any:
    from calibrated_rounding.nodes.nodes_example_encoder import load

    return load(path)
