"""What a PSNR means, in words, and which of several candidates to take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ...quant.layer.acceptance import STANDARD_ERRORS
from ...quant.notices import Notice, notice
from .latents import CandidateRow

ALIKE = 1.01
"""Ratio of sizes up to which no candidate is called smaller."""
FASTER = 1.1
"""Ratio of times from which a candidate is called faster. A rule: the times are of this one run."""

VERDICTS: tuple[tuple[float, str], ...] = (
    (math.inf, "compare_identical"),
    (50, "compare_very_close"),
    (40, "compare_close"),
    (30, "compare_details"),
    (-math.inf, "compare_other"),
)
"""Least PSNR in dB -> the notice.

Of 8-bit pictures, lossy compression usually keeps 30 to 50 dB (S. Welstead, Fractal and Wavelet Image Compression
Techniques, 1999, pp. 155-156). For latents there is no study, so that the notices say how large a typical difference
is, and claim nothing of what a viewer sees.
"""


def judge(psnr_db: float) -> Notice | None:
    """The verdict on the mean PSNR of finished latents; None for NaN."""
    kind = next((kind for least, kind in VERDICTS if psnr_db >= least), None)
    if kind is None:
        return None
    return notice(kind) if psnr_db == math.inf else notice(kind, psnr=f"{psnr_db:.1f}", share=_share(psnr_db))


def _share(psnr_db: float) -> str:
    """The root mean square of the difference as a share of the range, in percent."""
    return f"{100 * 10 ** (-psnr_db / 20):.2g} %"


def judge_all(rows: Sequence[CandidateRow]) -> list[Notice]:
    """Which of several candidates to take and why, which was the fastest, and the verdict on each."""
    known = [row for row in rows if not math.isnan(row.psnr_db)]
    if not known:
        return []
    return [recommend(known), *_name_fastest(known), *map(_judge_row, known)]


def recommend(rows: Sequence[CandidateRow]) -> Notice:
    """The closest candidate, or a smaller one that is not surely further off; and the smallest beside it."""
    closest = max(rows, key=lambda row: row.psnr_db)
    alike = [row for row in rows if row is closest or not is_surely_closer(closest, row)]
    least = min(row.nbytes for row in alike)
    taken = max((row for row in alike if row.nbytes <= ALIKE * least), key=lambda row: row.psnr_db)
    smallest = min(rows, key=lambda row: row.nbytes)
    if taken.nbytes > ALIKE * smallest.nbytes:
        share, distance = 1 - smallest.nbytes / taken.nbytes, taken.psnr_db - smallest.psnr_db
        return notice(
            "compare_take_closest",
            candidate=taken.name,
            smallest=smallest.name,
            share=f"{share:.0%}",
            distance=f"{distance:.1f}",
        )
    if taken is closest:
        return notice("compare_take_best", candidate=taken.name)
    return notice("compare_take_alike", candidate=taken.name, closest=closest.name)


def is_surely_closer(row: CandidateRow, other: CandidateRow) -> bool:
    """Whether a candidate is significantly closer to the reference: a paired z-test over the seeds.

    One seed has no spread; there the closer one counts.
    """
    if not (math.isfinite(other.psnr_db) and math.isfinite(row.psnr_db)):
        return row.psnr_db > other.psnr_db
    pairs = zip(row.comparison.seeds, other.comparison.seeds, strict=True)
    differences = [one.final.psnr_db - two.final.psnr_db for one, two in pairs]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return statistics.fmean(differences) > STANDARD_ERRORS * spread / math.sqrt(len(differences))


def _name_fastest(rows: Sequence[CandidateRow]) -> list[Notice]:
    """The fastest candidate, if it was clearly faster than the others."""
    timed = sorted((row.seconds, row.name) for row in rows if row.seconds is not None)
    if len(timed) < 2 or timed[1][0] < FASTER * timed[0][0]:
        return []
    seconds, name = timed[0]
    return [notice("compare_fastest", candidate=name, seconds=f"{seconds:.2g}")]


def _judge_row(row: CandidateRow) -> Notice:
    kind = next(kind for least, kind in VERDICTS if row.psnr_db >= least)
    values = {} if row.psnr_db == math.inf else {"psnr": f"{row.psnr_db:.1f}"}
    return notice(kind.replace("compare_", "compare_each_"), None, candidate=row.name, **values)
