"""How close the latents that one model samples come to those of another, from the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...quant.text import table


@dataclass(frozen=True)
class Closeness:
    """psnr_db: 20 log10(peak / root mean square error), infinite where nothing differs. cosine: of both as vectors.
    relative_error: ||made - wanted|| / ||wanted||, infinite where only ``wanted`` is zero. NaN in, NaN out.
    """

    psnr_db: float
    cosine: float
    relative_error: float


@dataclass(frozen=True)
class Trace:
    """One sampling, on the CPU: the finished latents ``final [B, C, ...]``, and what the model took them for at each
    step (its prediction with all noise removed), of the same shape and in the same space.
    """

    steps: Sequence[Tensor]
    final: Tensor


@dataclass(frozen=True)
class SeedComparison:
    """steps: empty where the sampler took different numbers of steps with the two models."""

    seed: int
    steps: tuple[Closeness, ...]
    final: Closeness


@dataclass(frozen=True)
class LatentComparison:
    """A candidate's latents against a reference's, by seed."""

    seeds: tuple[SeedComparison, ...]

    @property
    def mean(self) -> Closeness:
        """Over the seeds' finished latents, each figure for itself; decibels are averaged as decibels."""
        finals = [found.final for found in self.seeds]
        return Closeness(*(sum(figures) / len(finals) for figures in zip(*map(_figures, finals), strict=True)))

    def summary(self) -> str:
        """The finished latents' figures, a line for each seed."""
        rows = [("seed", *HEAD), *((str(found.seed), *_cells(found.final)) for found in self.seeds)]
        rows += [("mean", *_cells(self.mean))] if len(self.seeds) > 1 else []
        return "\n".join(["Finished latents, candidate against reference:", *table(rows, RIGHT)])

    def table(self) -> str:
        """`summary`, and the same figures for each step."""
        rows = [
            (str(found.seed), str(step), *_cells(closeness))
            for found in self.seeds
            for step, closeness in enumerate(found.steps, 1)
        ]
        uneven = [str(found.seed) for found in self.seeds if not found.steps]
        parts = [self.summary()]
        if rows:
            lines = table([("seed", "step", *HEAD), *rows], RIGHT)
            parts.append("\n".join(["What the models take the finished latents for, step by step:", *lines]))
        if uneven:
            parts.append(
                f"Not compared by step: the models took different numbers of steps at seed {', '.join(uneven)}."
            )
        return "\n\n".join(parts)


HEAD = ("PSNR dB", "cosine", "relative error")
RIGHT = frozenset(range(5))


def closeness(made: Tensor, wanted: Tensor, peak: float | None = None) -> Closeness:
    """Compare tensors of one shape, in double precision. ``peak`` is PSNR's; by default the range of ``wanted``."""
    peak = span(wanted) if peak is None else peak
    made, wanted = made.double().flatten(), wanted.double().flatten()
    error, size = float((made - wanted).norm()), float(wanted.norm())
    return Closeness(
        20 * _log10_ratio(peak, error / math.sqrt(len(wanted))),
        _cosine(float(made @ wanted), float(made.norm()) * size, error),
        error / size if size else (math.inf if error else 0.0),
    )


def span(latents: Tensor) -> float:
    """The range of all values."""
    lowest, highest = torch.aminmax(latents.double())
    return float(highest - lowest)


def compare_traces(seed: int, made: Trace, wanted: Trace) -> SeedComparison:
    """The peak of all figures is the range of the reference's finished latents, so that steps can be compared."""
    peak = span(wanted.final)
    even = len(made.steps) == len(wanted.steps)
    pairs = zip(made.steps, wanted.steps, strict=True) if even else ()
    return SeedComparison(
        seed,
        tuple(closeness(step, other, peak) for step, other in pairs),
        closeness(made.final, wanted.final, peak),
    )


def _log10_ratio(peak: float, error: float) -> float:
    if error == 0:
        return math.inf
    return math.log10(peak / error) if peak > 0 else -math.inf


def _cosine(product: float, sizes: float, error: float) -> float:
    if error == 0:
        return 1.0
    return product / sizes if sizes else 0.0


def _figures(found: Closeness) -> tuple[float, float, float]:
    return found.psnr_db, found.cosine, found.relative_error


def _cells(found: Closeness) -> tuple[str, str, str]:
    psnr = "identical" if found.psnr_db == math.inf else f"{found.psnr_db:.2f}"
    return psnr, f"{found.cosine:.6f}", f"{found.relative_error:.5f}"
