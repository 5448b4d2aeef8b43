"""Comparing the latents that two models sample from the same noise, a reference and a candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ...quant.text import megabytes, table


@dataclass(frozen=True)
class Closeness:
    """How close a tensor is to a reference. NaN in a tensor makes every figure NaN."""

    psnr_db: float
    """20 log10(peak / root mean square error); infinite if nothing differs."""
    cosine: float
    """Cosine similarity of both as vectors."""
    relative_error: float
    """||candidate - reference|| / ||reference||; infinite if only the reference is zero."""


@dataclass(frozen=True)
class Trace:
    """One sampling, on the CPU."""

    steps: Sequence[Tensor]
    """The model's denoised prediction at each step, in the shape and the space of the finished latents."""
    final: Tensor
    """The finished latents ``[B, C, ...]``."""


@dataclass(frozen=True)
class SeedComparison:
    """The latents of both models at one seed."""

    seed: int
    steps: tuple[Closeness, ...]
    """Of each step; empty if the sampler took different numbers of steps with the two models."""
    final: Closeness
    """Of the finished latents."""


@dataclass(frozen=True)
class LatentComparison:
    """A candidate's latents against a reference's, by seed."""

    seeds: tuple[SeedComparison, ...]

    @property
    def mean(self) -> Closeness:
        """The mean over the seeds' finished latents, figure by figure; decibels are averaged as decibels."""
        finals = [comparison.final for comparison in self.seeds]
        return Closeness(*(sum(figures) / len(finals) for figures in zip(*map(astuple, finals), strict=True)))

    def summary(self) -> str:
        """The figures of the finished latents, a line for each seed."""
        rows = [("seed", *HEAD), *((str(comparison.seed), *_cells(comparison.final)) for comparison in self.seeds)]
        rows += [("mean", *_cells(self.mean))] if len(self.seeds) > 1 else []
        return "\n".join(["Finished latents, candidate against reference:", *table(rows, RIGHT)])

    def table(self) -> str:
        """`summary`, and the figures of each step."""
        rows = [
            (str(comparison.seed), str(step), *_cells(closeness))
            for comparison in self.seeds
            for step, closeness in enumerate(comparison.steps, 1)
        ]
        uneven = [str(comparison.seed) for comparison in self.seeds if not comparison.steps]
        parts = [self.summary()]
        if rows:
            lines = table([("seed", "step", *HEAD), *rows], RIGHT)
            parts.append("\n".join(["Denoised predictions, step by step:", *lines]))
        if uneven:
            parts.append(
                f"Not compared by step: the models took different numbers of steps at seed {', '.join(uneven)}."
            )
        return "\n\n".join(parts)


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """A candidate in the table of several."""

    name: str
    nbytes: int
    """In memory."""
    seconds: float | None
    """Of one step, the median; None: not measured."""
    comparison: LatentComparison

    @property
    def psnr_db(self) -> float:
        """Mean PSNR of the finished latents; NaN: unknown."""
        return self.comparison.mean.psnr_db


def tabulate(rows: Sequence[CandidateRow]) -> str:
    """Several candidates against one reference, a line for each."""
    head = ("candidate", "MB", "PSNR dB", "worst seed", "seconds a step")
    lines = [head, *(_candidate_cells(row) for row in rows)]
    return "\n".join(["Finished latents, mean over the seeds:", *table(lines, RIGHT - {0})])


def _candidate_cells(row: CandidateRow) -> tuple[str, ...]:
    worst = min(comparison.final.psnr_db for comparison in row.comparison.seeds)
    seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
    return row.name, megabytes(row.nbytes), _decibels(row.comparison.mean.psnr_db), _decibels(worst), seconds


HEAD = ("PSNR dB", "cosine", "relative error")
RIGHT = frozenset(range(5))


def measure_closeness(candidate: Tensor, reference: Tensor, peak: float | None = None) -> Closeness:
    """Compare two tensors of one shape, in double precision.

    Args:
        candidate: The tensor to judge.
        reference: The tensor to compare with.
        peak: Peak of the PSNR; None: the range of ``reference``.
    """
    peak = value_range(reference) if peak is None else peak
    candidate, reference = candidate.double().flatten(), reference.double().flatten()
    error, norm = float((candidate - reference).norm()), float(reference.norm())
    return Closeness(
        20 * _log10_ratio(peak, error / math.sqrt(len(reference))),
        _cosine(float(candidate @ reference), float(candidate.norm()) * norm, error),
        error / norm if norm else (math.inf if error else 0.0),
    )


def value_range(latents: Tensor) -> float:
    """The largest value minus the smallest."""
    lowest, highest = torch.aminmax(latents.double())
    return float(highest - lowest)


def compare_traces(seed: int, candidate: Trace, reference: Trace) -> SeedComparison:
    """Compare two samplings. The peak of every figure is the range of the reference's finished latents."""
    peak = value_range(reference.final)
    even = len(candidate.steps) == len(reference.steps)
    pairs = zip(candidate.steps, reference.steps, strict=True) if even else ()
    return SeedComparison(
        seed,
        tuple(measure_closeness(step, other, peak) for step, other in pairs),
        measure_closeness(candidate.final, reference.final, peak),
    )


def _log10_ratio(peak: float, error: float) -> float:
    if error == 0:
        return math.inf
    return math.log10(peak / error) if peak > 0 else -math.inf


def _cosine(product: float, norms: float, error: float) -> float:
    if error == 0:
        return 1.0
    return product / norms if norms else 0.0


def _cells(closeness: Closeness) -> tuple[str, str, str]:
    return _decibels(closeness.psnr_db), f"{closeness.cosine:.6f}", f"{closeness.relative_error:.5f}"


def _decibels(value: float) -> str:
    return "identical" if value == math.inf else f"{value:.2f}"
