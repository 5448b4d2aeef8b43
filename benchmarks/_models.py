"""Trained networks that run from end to end: what they read, which of their layers are quantized, and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import _minilm
import _smollm
import torch
from _networks import BATCH, GUIDANCE, load_transformer
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.recorder import Recorder
from torch import Tensor, nn

Inputs = list[tuple[Tensor, ...]]
"""Arguments of a model's calls."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network with inputs to learn from, and others to judge by."""

    name: str
    module: nn.Module
    layers: tuple[str, ...]
    """Names of the linear layers to quantize, whose weights change."""
    weights: Mapping[str, Tensor]
    """Their float weights ``[N, K]``."""
    learned: Inputs
    judged: Inputs

    @contextmanager
    def replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Run with other weights within the block."""
        self._set_weights(weights)
        try:
            yield
        finally:
            self._set_weights(self.weights)

    def _set_weights(self, weights: Mapping[str, Tensor]) -> None:
        for layer, weight in weights.items():
            self.module.get_submodule(layer).weight.copy_(weight)

    def record(self, inputs: Inputs, rows: int, layers: Sequence[str] | None = None) -> Calibration:
        """Record inputs of some layers, or of all: the same places of all calls, whatever the weights are."""
        recorder, watched = Recorder(rows=rows), self.layers if layers is None else layers
        with recorder.watch(self.module, layers=list(watched)), torch.inference_mode():
            for arguments in inputs:
                with _stop_behind(self.module.get_submodule(watched[-1])):
                    self.module(*arguments)
        return recorder.calibration()

    @torch.inference_mode()
    def run(self, inputs: Inputs) -> Tensor:
        """Return the outputs of all calls, a row for each text or picture."""
        return torch.cat([self.module(*arguments) for arguments in inputs]).flatten(1)


def load_digits() -> Model:
    """Load the shipped diffusion model, with its inputs while it draws every digit, at two seeds."""
    model, table, sample = load_transformer()

    def collect(seed: int) -> Inputs:
        calls: Inputs = []
        hook = model.register_forward_pre_hook(lambda module, arguments: calls.append(arguments))
        torch.manual_seed(seed)
        sample(model, table, torch.arange(10).repeat(2), GUIDANCE)
        hook.remove()
        return calls

    return _make("digits", model, "blocks.", collect(1000), collect(5000))


def load_minilm() -> Model:
    """Load the text encoder; three of its six layers are quantized, all of them run."""
    folder = _minilm.find_model()
    assert folder is not None, f"{_minilm.PACKAGE} is not installed"
    prefixes = tuple(f"encoder.layer.{i}." for i in range(3))
    return _read_texts("MiniLM", _minilm.load_encoder(folder), prefixes, _minilm.tokenize_topics(folder), (60, 20))


def load_smollm() -> Model:
    """Load the language model; three of its 30 layers are quantized, all of them run."""
    path = _smollm.find_model()
    assert path is not None, f"{_smollm.PACKAGE} is not installed"
    model = _smollm.load_model(_smollm.load_weights(path))
    prefixes = tuple(f"blk.{i}." for i in range(8, 11))
    return _read_texts("SmolLM2", model, prefixes, _smollm.tokenize_topics(path), (20, 10))


class _Stopped(Exception):
    """The last layer that matters has run."""


@contextmanager
def _stop_behind(module: nn.Module) -> Iterator[None]:
    """Leave the block once a module has run."""

    def stop(*_: object) -> None:
        raise _Stopped

    hook = module.register_forward_hook(stop)
    try:
        yield
    except _Stopped:
        pass
    finally:
        hook.remove()


MODEL_LOADERS: Mapping[str, Callable[[], Model]] = {
    "digits": load_digits,
    "MiniLM": load_minilm,
    "SmolLM2": load_smollm,
}


def _read_texts(name: str, module: nn.Module, prefixes: Any, texts: Tensor, counts: tuple[int, int]) -> Model:
    """Some texts to learn from, and other ones to judge by."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    parts = order[: sum(counts)].split(list(counts))
    learned, judged = ([(texts[rows],) for rows in part.split(BATCH)] for part in parts)
    return _make(name, module, prefixes, learned, judged)


def _make(name: str, module: nn.Module, prefixes: Any, learned: Inputs, judged: Inputs) -> Model:
    module.eval().requires_grad_(False)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefixes)}
    weights = {layer: m.weight.detach().clone() for layer, m in linear.items()}
    return Model(name=name, module=module, layers=tuple(linear), weights=weights, learned=learned, judged=judged)
