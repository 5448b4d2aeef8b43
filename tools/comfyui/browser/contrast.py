"""Contrast of the pack's texts with what lies behind them, as WCAG 2.2 defines it (success criterion 1.4.3).

The text's colour is the browser's; the colour behind it is read from a screenshot, because nodes are drawn on a canvas.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SCRIPT = Path(__file__).with_name("contrast.js")
READABLE = 4.5
"""Least ratio of texts below 24 pixels."""

VISIBLE = 3
"""Least ratio of marks that carry a meaning (success criterion 1.4.11)."""

Colour = Sequence[int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Contrast:
    """Contrast of one text."""

    words: str
    ratio: float
    """1 (the same colour) to 21 (black on white)."""


def measure_contrast(page: Any, selector: str) -> list[Contrast]:
    """Measure every text that can be seen in the elements of a CSS selector; disabled controls are left out."""
    _load_script(page)
    texts = page.evaluate("(selector) => window.packContrast.listTexts(selector)", selector)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return list(_measure(page, picture, texts))


def resolve_colour(page: Any, element: Any, value: str, ground: Colour) -> list[int]:
    """Resolve a CSS colour inside an element, over an opaque one."""
    _load_script(page)
    arguments = [element, value, ground]
    colour: list[int] = page.evaluate("(values) => window.packContrast.resolve(...values)", arguments)
    return colour


def compute_ratio(one: Colour, other: Colour) -> float:
    """Compute the contrast ratio of two colours."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _load_script(page: Any) -> None:
    page.evaluate(f"() => {{ {SCRIPT.read_text(encoding='utf-8')} }}")


def _measure(page: Any, picture: Image.Image, texts: list[dict[str, Any]]) -> Iterator[Contrast]:
    for text in texts:
        ground = _most_common_colour(picture, text)
        arguments = [text["colour"], text["opacity"], ground]
        ink = page.evaluate("(values) => window.packContrast.over(...values)", arguments)
        yield Contrast(text["words"], compute_ratio(ink, ground))


def _most_common_colour(picture: Image.Image, box: dict[str, float]) -> list[int]:
    """The colour of most pixels in a text's box: glyphs cover less than what is behind them."""
    right, bottom = box["left"] + box["width"], box["top"] + box["height"]
    part = picture.crop((round(box["left"]), round(box["top"]), round(right), round(bottom)))
    colours = part.getcolors(part.width * part.height)
    return list(max(colours)[1])


def _luminance(colour: Colour) -> float:
    """Relative luminance, 0 to 1."""
    red, green, blue = (_to_linear(value / 255) for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _to_linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
