"""The two ways in which ComfyUI runs FP8 layers, for tests that run them both.

Without FP8 units it keeps the inputs in 16 bits. With them it quantizes the inputs to FP8, with scale 1 unless the file
has an ``input_scale``; the option ``--supports-fp8-compute`` takes that path on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from calibrated_rounding.tools.comfyui import FP8_COMPUTE

OPTIONS: dict[str, tuple[str, ...]] = {"emulated": (), "fp8_compute": (FP8_COMPUTE,)}
"""Options of ComfyUI for each way."""


def both_ways(cases: Iterable[str], has_fp8: Callable[[str], bool]) -> list[tuple[str, str]]:
    """List ``(case, way)``: every case emulated, and cases with FP8 layers also with FP8 compute."""
    names = list(cases)
    return [(name, way) for way in OPTIONS for name in names if way == "emulated" or has_fp8(name)]
