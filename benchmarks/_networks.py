"""Trained networks with recorded inputs of their layers: one set for calibration, one held out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _minilm
import _smollm
import torch
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.recorder import Recorder
from calibrated_rounding.quant.files import open_checkpoint
from torch import Tensor

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "models"
DIGITS = MODELS / "diffusion_models" / "digits_wan.safetensors"
GUIDANCE = 3.0
TEXTS, BATCH = 200, 20


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network."""

    name: str
    weights: dict[str, Tensor]
    """Float32 ``[N, K]`` by layer."""
    calibration: Calibration
    held_out: Calibration
    """Inputs of other runs than the calibration's."""


def load_transformer() -> tuple[Any, Tensor, Callable[..., Any]]:
    """Load the shipped diffusion model in float32, its conditioning table, and the function that samples it."""
    sys.path.insert(0, str(ROOT / "tools"))
    from example_model import WanTransformer
    from train_example import sample

    with open_checkpoint(DIGITS) as checkpoint:
        tensors = {name: checkpoint.read(name).float() for name in checkpoint.tensors}
    with open_checkpoint(MODELS / "conditioning" / "digits_conditioning.safetensors") as checkpoint:
        table = checkpoint.read("conditioning")
    model = WanTransformer(dim=256, ffn_dim=512, blocks=2, text_dim=64)
    model.load_state_dict(tensors)
    return model, table, sample


def load_digits() -> Network:
    """Load the linear layers of the shipped diffusion model's blocks, recorded while it draws every digit."""
    model, table, sample = load_transformer()
    model.eval().requires_grad_(False)

    def run(seed: int) -> None:
        torch.manual_seed(seed)
        sample(model, table, torch.arange(10).repeat(2), GUIDANCE)

    return _record("digits", model, model.state_dict(), "blocks.", [run, run], seeds=(1000, 5000))


def load_minilm() -> list[Network]:
    """Load two of the text encoder's six layers, recorded on Python's documentation; empty if it is not installed."""
    folder = _minilm.find_model()
    if folder is None:
        return []
    layers = ("encoder.layer.1.", "encoder.layer.4.")
    model, texts = _minilm.load_encoder(folder), _minilm.tokenize_topics(folder)
    return [_read_texts("MiniLM", model, _minilm.load_weights(folder), layers, texts, TEXTS)]


def load_smollm() -> list[Network]:
    """Load two of the language model's 30 layers, recorded on Python's documentation; empty if it is not installed."""
    path = _smollm.find_model()
    if path is None:
        return []
    weights = _smollm.load_weights(path)
    model, texts = _smollm.load_model(weights), _smollm.tokenize_topics(path)
    return [_read_texts("SmolLM2", model, weights, ("blk.8.", "blk.20."), texts, TEXTS // 20)]


LOADERS: Mapping[str, Callable[[], list[Network]]] = {
    "digits": lambda: [load_digits()],
    "MiniLM": load_minilm,
    "SmolLM2": load_smollm,
}


def _read_texts(
    name: str, model: torch.nn.Module, weights: dict[str, Tensor], layers: tuple[str, ...], texts: Tensor, count: int
) -> Network:
    """Record a model while it reads ``count`` texts, and ``count`` other ones."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))

    def read(rows: Tensor) -> Callable[[int], None]:
        return lambda seed: [model(texts[part]) for part in rows.split(BATCH)] and None

    runs = [read(order[:count]), read(order[count : 2 * count])]
    return _record(name, model, weights, layers, runs, seeds=(0, 0))


def _record(
    name: str,
    model: torch.nn.Module,
    tensors: dict[str, Tensor],
    prefixes: str | tuple[str, ...],
    runs: Iterable[Callable[[int], None]],
    seeds: tuple[int, int],
) -> Network:
    keys = [key for key, t in tensors.items() if key.startswith(prefixes) and key.endswith(".weight") and t.dim() == 2]
    layers = [key.removesuffix(".weight") for key in keys]
    calibration, held_out = (_record_run(model, layers, run, seed) for run, seed in zip(runs, seeds, strict=True))
    weights = {layer: tensors[f"{layer}.weight"] for layer in layers}
    return Network(name=name, weights=weights, calibration=calibration, held_out=held_out)


def _record_run(model: torch.nn.Module, layers: list[str], run: Callable[[int], None], seed: int) -> Calibration:
    recorder = Recorder()
    with torch.inference_mode(), recorder.watch(model, layers=layers):
        run(seed)
    return recorder.calibration()
