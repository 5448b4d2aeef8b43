"""Final hidden states of quantized text encoders against the float encoders', on prompts that nothing learned from.

    python benchmarks/encoders.py [--json FILE] [--networks NAME,NAME...]

ComfyUI dequantizes the weights of text encoders, so every format is weight-only here. Three trained networks:

- shipped encoder: the example's Gemma 2 of 0.5 million weights, in ComfyUI's own CLIP code, calibrated by the pack's
  own node. The ComfyUI is found as in the tests; without one the values are empty.
- MiniLM and SmolLM2 (_minilm.py, _smollm.py; left out if their packages are not installed), all layers of their blocks,
  on the documentation of Python: calibrated on some texts, measured on others.

"nearest" is what other converters write. Q8_0 is GGUF's format (blocks of 32, a scale in 16 bits), FP8 cast is FP8
without a scale; both are computed here, as weights that are rounded and dequantized.

SNR: 10 log10 of the sum of squares of the float encoder's hidden states over the sum of squares of the error, over all
tokens and prompts. Cosine: between the hidden states of each token, averaged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import _minilm
import _smollm
import torch
from _networks import BATCH, TEXTS
from _table import Row, arguments, emit
from calibrated_rounding.quant import Recipe, quantize_file, quantize_state_dict
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.recorder import Recorder
from calibrated_rounding.quant.files import CheckpointWriter, open_checkpoint
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.sources import StateDictSource
from calibrated_rounding.quant.layer.layer_errors import decibels, relative_error, square_sum
from calibrated_rounding.tools.comfyui import HostMissing, example_model, find_host
from calibrated_rounding.tools.example_prompts import HELD_OUT, SEEN, fill_template
from torch import Tensor

FORMATS = ("int8_convrot", "float8_e4m3fn", "w6a8", "w4a8", "nvfp4")
METHODS = ("nearest", "calibrated")
SHIPPED = "shipped encoder"
BLOCK = 32
"""Weights that share a scale in Q8_0."""
LAYERS = "_proj.weight"
"""End of the names of the shipped encoder's layers."""

Weights = dict[str, Tensor]
Round = Callable[[Tensor], Tensor]


def round_q8_0(weight: Tensor) -> Tensor:
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float16).tiny)
    return ((blocks / scale).round() * scale.half().float()).flatten(1)


def cast_to_fp8(weight: Tensor) -> Tensor:
    return weight.to(torch.float8_e4m3fn).float()


OTHERS: Mapping[str, Round] = {"Q8_0": round_q8_0, "FP8 cast": cast_to_fp8}
"""Formats that the pack does not write, rounded and dequantized."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of networks (default all)")
    options = parser.parse_args()
    rows = [row for name in options.networks.split(",") for row in NETWORKS[name]()]
    emit(rows, options.json, "Hidden states of text encoders against the float encoders'")


def rows_of(case: str, states: list[Tensor] | None, reference: list[Tensor] | None) -> Iterator[Row]:
    """The figures of an encoder's hidden states ``[tokens, width]``, one tensor a prompt."""
    snr, cosine = None, None
    if states is not None and reference is not None:
        pairs = list(zip(states, reference, strict=True))
        error, square = (sum(square_sum(t) for t in ts) for ts in ([a - b for a, b in pairs], reference))
        snr = decibels(relative_error(error, square))
        cosine = float(torch.cat([torch.cosine_similarity(a.double(), b.double(), dim=-1) for a, b in pairs]).mean())
    yield Row(case=case, metric="SNR", value=snr, unit="dB")
    yield Row(case=case, metric="cosine", value=cosine, unit="cosine")


def measure_shipped() -> Iterator[Row]:
    cases = [*(f"{fmt}, {method}" for fmt in FORMATS for method in METHODS), *(f"{name}, nearest" for name in OTHERS)]
    try:
        states = encode_shipped()
    except HostMissing as reason:
        print(f"The shipped encoder was not measured: {reason}.")
        states = {}
    for case in cases:
        yield from rows_of(f"{SHIPPED}, {case}", states.get(case), states.get("float"))


def encode_shipped() -> dict[str, list[Tensor]]:
    """The hidden states of every file that is made from the shipped encoder, by case, and of the float encoder."""
    host, source = find_host(), example_model("digits_gemma2.safetensors")
    seen, unseen = fill_templates(SEEN, step=1), fill_templates(HELD_OUT, step=3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        function = "benchmarks._inside:calibrate_encoder"
        calibration = Calibration.load(
            host.call(function, source=source, prompts=seen, folder=folder, timeout=3600)["path"]
        )
        paths = {"float": Path(source)}
        for fmt in FORMATS:
            for method in METHODS:
                path = paths[f"{fmt}, {method}"] = folder / f"{fmt}_{method}.safetensors"
                quantize_file(source, path, Recipe(format=fmt, rounding=method), statistics=calibration)
        for title, round_weight in OTHERS.items():
            paths[f"{title}, nearest"] = save_rounded(Path(source), folder / f"{title}.safetensors", round_weight)
        return host.call("benchmarks._inside:encode_files", paths=paths, prompts=unseen, timeout=3600)


def fill_templates(templates: tuple[str, ...], step: int) -> list[str]:
    """Each template with every ``step``-th digit."""
    return [fill_template(template, digit, False) for template in templates for digit in range(0, 10, step)]


def save_rounded(source: Path, target: Path, round_weight: Round) -> Path:
    """Write a file with the layers rounded and dequantized, in float32."""
    with open_checkpoint(source) as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
        tensors |= {name: round_weight(t) for name, t in tensors.items() if name.endswith(LAYERS)}
        layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        with CheckpointWriter(target, layout, checkpoint.metadata) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
            writer.commit()
    return target


@dataclass(frozen=True, kw_only=True)
class TextNetwork:
    """A network that reads texts, in its own code."""

    name: str
    model: torch.nn.Module
    """Token numbers ``[N, tokens]`` -> final hidden states ``[N, tokens, width]``."""
    weights: Weights
    """Of all layers of its blocks, ``[N, K]`` by key."""
    learned: Tensor
    """Token numbers of the texts for the calibration."""
    unseen: Tensor

    @torch.inference_mode()
    def encode(self, weights: Weights) -> list[Tensor]:
        self.model.load_state_dict(weights, strict=False)
        return [states for part in self.unseen.split(BATCH) for states in self.model(part)]

    @torch.inference_mode()
    def calibrate(self) -> Calibration:
        recorder = Recorder()
        with recorder.watch(self.model, layers=[key.removesuffix(".weight") for key in self.weights]):
            for part in self.learned.split(BATCH):
                self.model(part)
        return recorder.calibration()

    def measure(self) -> Iterator[Row]:
        reference, calibration = self.encode(self.weights), self.calibrate()
        for fmt in FORMATS:
            for method in METHODS:
                # The blocks are parts of a model, which ComfyUI alone could not load.
                recipe = Recipe(format=fmt, rounding=method, profile="generic")
                tensors, _ = quantize_state_dict(self.weights, recipe, statistics=calibration, force=True)
                floats = as_float(StateDictSource(tensors), dequantize=True, dtype=torch.float32)
                states = self.encode({key: floats.read(key) for key in self.weights})
                yield from rows_of(f"{self.name}, {fmt}, {method}", states, reference)
        for title, round_weight in OTHERS.items():
            states = self.encode({key: round_weight(weight) for key, weight in self.weights.items()})
            yield from rows_of(f"{self.name}, {title}, nearest", states, reference)


def measure_minilm() -> Iterator[Row]:
    folder = _minilm.find_model()
    if folder is not None:
        weights, texts = _minilm.load_weights(folder), _minilm.tokenize_topics(folder)
        model = _minilm.load_encoder(folder)
        yield from make_network("MiniLM", model, weights, "encoder.layer.", texts, TEXTS).measure()


def measure_smollm() -> Iterator[Row]:
    path = _smollm.find_model()
    if path is not None:
        weights, texts = _smollm.load_weights(path), _smollm.tokenize_topics(path)
        model = _smollm.load_model(weights)
        yield from make_network("SmolLM2", model, weights, "blk.", texts, TEXTS // 20).measure()


def make_network(
    name: str, model: torch.nn.Module, weights: Weights, blocks: str, texts: Tensor, count: int
) -> TextNetwork:
    """Take the first ``count`` of the texts, in a fixed random order, for the calibration, and as many others."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    layers = {key: t for key, t in weights.items() if key.startswith(blocks) and t.dim() == 2}
    learned, unseen = texts[order[:count]], texts[order[count : 2 * count]]
    return TextNetwork(name=name, model=model, weights=layers, learned=learned, unseen=unseen)


NETWORKS: Mapping[str, Callable[[], Iterator[Row]]] = {
    SHIPPED: measure_shipped,
    "MiniLM": measure_minilm,
    "SmolLM2": measure_smollm,
}


if __name__ == "__main__":
    main()
