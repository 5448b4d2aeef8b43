"""What each part of calibrated rounding gains in formats of 4 and 6 bits, and what was tried and left out.

    python benchmarks/grouped.py [--json FILE]

The networks of benchmarks/quality.py, the same layers, the functions behind `calibrated` without acceptance by held-out
rows. Each figure is the output error on held-out inputs (W8A16), averaged over layers, relative to nearest rounding of
the format as ComfyUI stores it.

- The first variants build on each other: scales of nearest, neighbouring scales, all candidates, refinement passes.
- The others change one thing about two passes: channel scales 10 % smaller or larger, or fitted to the codes by least
  squares in the Hessian's metric; for nvfp4 the scale of the whole weight (the best of five within half an octave, by
  the cost in that metric); a codebook fitted in it; groups of 8 (one more byte for every 16 weights); the damping that
  text encoders get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from _networks import LOADERS, Network
from _table import Row, arguments, emit
from calibrated_rounding.quant.formats import FORMATS, GroupedFormat, GroupScales
from calibrated_rounding.quant.formats.rotation import largest_group, rotate
from calibrated_rounding.quant.rounding.calibrated import TEXT_DAMPING, estimate_hessian
from calibrated_rounding.quant.rounding.grouped import round_grouped
from torch import Tensor

NAMES = ("w6a8", "w4a8", "nvfp4")
PASSES = 2
LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer in the basis of its format."""

    weight: Tensor
    hessian: Tensor
    inputs: Tensor
    """Held out."""
    learned: Tensor
    """Calibration rows."""

    def cost(self, weight: Tensor) -> float:
        error = weight - self.weight
        return float((error @ self.hessian * error).sum())

    def error(self, weight: Tensor) -> float:
        reference = self.inputs @ self.weight.T
        return float((self.inputs @ weight.T - reference).norm() / reference.norm())


Variant = Callable[[Layer, GroupedFormat], Tensor]
"""The dequantized weight after rounding in some way."""


def calibrate(passes: int = PASSES, **options: object) -> Variant:
    def variant(layer: Layer, fmt: GroupedFormat) -> Tensor:
        return solve(layer, fmt, fmt.find_scale(layer.weight, "absmax"), passes, **options)

    return variant


def solve(layer: Layer, fmt: GroupedFormat, scale: GroupScales, passes: int = PASSES, **options: object) -> Tensor:
    codes, chosen = round_grouped(layer.weight, scale, fmt, layer.hessian, lambda: None, passes=passes, **options)
    return fmt.dequantize(codes, chosen)


def scale_channels(factor: float) -> Variant:
    def variant(layer: Layer, fmt: GroupedFormat) -> Tensor:
        scale = fmt.find_scale(layer.weight, "absmax")
        group = (scale.group.float() / factor).clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn)
        return solve(layer, fmt, replace(scale, group=group, channel=scale.channel * factor))

    return variant


def fit_channels(layer: Layer, fmt: GroupedFormat) -> Tensor:
    """Multiply each row, or the weight where rows share a scale, by what brings it closest to the float weight."""
    rounded = calibrate()(layer, fmt)
    product = rounded @ layer.hessian
    factors = torch.stack([(product * weight).sum(dim=1) for weight in (layer.weight, rounded)])
    above, below = factors if fmt.channel_per_row else factors.sum(dim=1)[:, None]
    return rounded * (above / below)[:, None]


def search_channel(layer: Layer, fmt: GroupedFormat) -> Tensor:
    tried = [scale_channels(2 ** (step / 4))(layer, fmt) for step in range(-2, 3)]
    return min(tried, key=layer.cost)


def damp_as_text(layer: Layer, fmt: GroupedFormat) -> Tensor:
    hessian = estimate_hessian(layer.learned, least=TEXT_DAMPING)
    return calibrate()(replace(layer, hessian=hessian), fmt)


def fit_codebook(layer: Layer, fmt: GroupedFormat) -> Tensor:
    """Round, fit the levels to the weight by least squares in the Hessian's metric, and round again."""
    start = fmt.find_scale(layer.weight, "absmax")
    codes, scale = round_grouped(layer.weight, start, fmt, layer.hessian, lambda: None)
    wide = (scale.group.float() * scale.row_channel).repeat_interleave(fmt.group, dim=1)
    masks = [torch.where(codes == code, wide, 0.0) for code in fmt.order]
    products = [mask @ layer.hessian for mask in masks]
    normal = torch.tensor([[float((p * mask).sum()) for mask in masks] for p in products])
    right = torch.tensor([float((p * layer.weight).sum()) for p in products])
    levels = torch.linalg.solve(normal.double(), right.double()).float().sort().values
    return solve(layer, fmt, replace(start, codebook=levels))


def halve_groups(layer: Layer, fmt: GroupedFormat) -> Tensor:
    fine = replace(fmt, group=8, group_size=8)
    return solve(layer, fine, fine.find_scale(layer.weight, "absmax"))


VARIANTS: Mapping[str, Variant] = {
    "scales of nearest": calibrate(passes=0, steps=(0,)),
    "neighbouring scales": calibrate(passes=0, steps=(0, -1, 1)),
    "all candidates": calibrate(passes=0),
    "one pass": calibrate(passes=1),
    "two passes": calibrate(passes=2),
    "six passes": calibrate(passes=6),
    "smaller channel scales": scale_channels(0.9),
    "larger channel scales": scale_channels(1.1),
    "fitted channel scales": fit_channels,
    "searched scale of the weight": search_channel,
    "fitted codebook": fit_codebook,
    "groups of 8": halve_groups,
    "damping of text encoders": damp_as_text,
}
NOT_IN: Mapping[str, tuple[str, ...]] = {
    "searched scale of the weight": ("w6a8", "w4a8"),
    "fitted codebook": ("w6a8", "nvfp4"),
    "groups of 8": ("nvfp4",),
}
"""Formats that a variant does not exist in."""


def main() -> None:
    options = arguments(__doc__).parse_args()
    networks = [network for load in LOADERS.values() for network in load()]
    rows = [row for network in networks for name in NAMES for row in rows_of(network, name)]
    emit(rows, options.json, "Errors of layers' outputs")


def rows_of(network: Network, name: str) -> Iterator[Row]:
    fmt = FORMATS[name]
    assert isinstance(fmt, GroupedFormat)
    layers = [load_layer(network, layer, fmt) for layer in network.weights]
    nearest = sum(layer.error(round_nearest(layer, fmt)) for layer in layers)
    for title, variant in VARIANTS.items():
        if name not in NOT_IN.get(title, ()):
            error = sum(layer.error(variant(layer, fmt)) for layer in layers)
            case = f"{network.name}, {name}, {title}"
            yield Row(case=case, metric="W8A16 to nearest", value=error / nearest, unit="ratio")


def round_nearest(layer: Layer, fmt: GroupedFormat) -> Tensor:
    scale = fmt.find_scale(layer.weight, "absmax")
    return fmt.dequantize(fmt.round(layer.weight, scale), scale)


def load_layer(network: Network, layer: str, fmt: GroupedFormat) -> Layer:
    weight = network.weights[layer].float().contiguous()
    group = largest_group(weight.shape[1], LIMIT) if fmt.rotated else None
    samples = (network.calibration[layer].rows, network.held_out[layer].rows)
    weight, learned, held_out = (
        rotate(x, group) if group else x for x in (weight, *(s.float().contiguous() for s in samples))
    )
    return Layer(weight=weight, hessian=estimate_hessian(learned), inputs=held_out, learned=learned)


if __name__ == "__main__":
    main()
