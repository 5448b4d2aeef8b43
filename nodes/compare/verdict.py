"""What a PSNR means, in words."""

from __future__ import annotations

import math

from ...quant.notices import Notice, notice

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
