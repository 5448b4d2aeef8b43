"""Shapes that gain nothing from 8 bits (the recipe's ``heuristics``), with the thresholds in one place."""

from __future__ import annotations

SMALLEST_SIDE = 256
"""Below this many inputs or outputs a product is bound by launch and quantization time (comfy-model-tools' finding)."""

ALIGNMENT = 16
"""8-bit matrix units read 16 bytes at a time; other sizes run padded or in 16 bits."""


def reason_to_leave(shape: tuple[int, int]) -> str | None:
    """Why a weight ``[N, K]`` of this shape is not worth quantizing, or None."""
    if min(shape) < SMALLEST_SIDE:
        return f"a side of {min(shape)} is below {SMALLEST_SIDE}: no speed to gain"
    if any(size % ALIGNMENT for size in shape):
        return f"{shape[0]} x {shape[1]} does not divide by {ALIGNMENT}: 8-bit products would run padded"
    return None
