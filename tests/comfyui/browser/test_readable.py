"""Everything that the pack shows has enough contrast in both themes: panels, report, charts, strip and slider."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tools.comfyui import PACK
from calibrated_rounding.tools.comfyui.browser import THEMES, Site
from calibrated_rounding.tools.comfyui.browser.contrast import (
    READABLE,
    VISIBLE,
    compute_ratio,
    measure_contrast,
    resolve_colour,
)

EXAMPLE = next((PACK / "examples").glob("*Compare nearest and calibrated.json"))

themes = pytest.mark.parametrize("theme", THEMES)


def check_readable(site: Site, selector: str, name: str, *expected: str) -> None:
    """Check the contrast of all texts, and that the expected ones were measured."""
    site.screenshot(name)

    def list_faults() -> list[str]:
        measured = measure_contrast(site.page, selector)
        shown = "\n".join(text.words for text in measured)
        missing = [f"not shown: {words}" for words in expected if words not in shown]
        return missing + [f"{text.ratio:.2f} {text.words}" for text in measured if text.ratio < READABLE]

    site.expect(list_faults, [])


@themes
def test_panel_is_readable_before_and_after_run(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.watch(quantize, lambda panel: "Recommended" in panel["notices"])
    check_readable(site, ".calro-panel", "planned", "Planned", "Recommended")
    site.set(quantize, format="float8_e4m3fn")
    site.watch(quantize, lambda panel: "only saves memory here" in panel["notices"])
    check_readable(site, ".calro-panel", "warned", "only saves memory here")
    site.set(quantize, profile="flux")
    site.queue()
    failed = site.watch_until(quantize, "failed")[-1]
    assert failed["notices"].count("'flux' does not describe") == 1
    check_readable(site, ".calro-panel", "failed", "Failed", "'flux' does not describe")
    site.set(quantize, profile="auto", format="int8_row")
    site.queue()
    site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    site.watch(quantize, lambda panel: "float8" not in panel["notices"])
    check_readable(site, ".calro-panel", "done", "Done", "Full report", "Copy path")


@themes
def test_report_is_readable(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="auto")
    site.set(quantize, format__target="share")
    site.set(quantize, format__target__target_share=0.8)
    site.queue()
    site.watch_until(quantize, "done")
    dialog = site.open_report(quantize)
    check_readable(site, ".calro-report", "report", "Weight error", "Chosen:", "blocks.")
    dialog.locator("svg").first.focus()
    site.page.keyboard.press("ArrowRight")
    check_readable(site, ".calro-report", "selected", "blocks.")
    for number, words in enumerate(("an input embedder", "target_share")):
        dialog.locator("summary").nth(number).click()
        site.wait_until_still(dialog.locator("details[open]"))
        check_readable(site, ".calro-report", f"unfolded_{number}", words)
        box = dialog.evaluate("(dialog) => [dialog.scrollHeight, dialog.clientHeight]")
        assert box[0] <= box[1], "what is folded out has room in the dialog"


@themes
def test_comparison_is_readable(site: Site) -> None:
    site.call("loadGraph", json.loads(EXAMPLE.read_text(encoding="utf-8")))
    compare, *_ = site.call("nodesOf", "CalibratedRoundingCompareModels")
    site.queue()
    site.watch(compare, lambda panel: panel["phase"] == "done", seconds=400)
    check_readable(site, ".calro-panel", "verdict", "PSNR dB")
    site.panel_button(compare, "Compare pictures")
    dialog = site.page.locator("dialog.calro-slider")
    site.wait_until_still(dialog)
    check_readable(site, ".calro-slider", "slider")


@themes
def test_every_format_has_its_own_colour(site: Site, chain: tuple[int, int, int]) -> None:
    ground = [255, 255, 255] if site.theme == "light" else [24, 24, 24]
    panel = site.panel(chain[1])
    colours = {name: resolve_colour(site.page, panel, f"var(--calro-{name})", ground) for name in FORMATS}
    for name, colour in colours.items():
        assert compute_ratio(colour, ground) >= VISIBLE, name
    for (one, first), (other, second) in combinations(colours.items(), 2):
        assert max(abs(a - b) for a, b in zip(first, second, strict=True)) >= 25, (one, other)


def test_long_notices_fade_until_they_are_scrolled(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.watch(quantize, lambda panel: "Recommended" in panel["notices"])
    site.resize(quantize, 240)
    notices = site.panel(quantize).query_selector(".calro-notices")
    fades = "(box) => box.classList.contains('calro-more')"
    site.page.wait_for_function(fades, arg=notices)
    site.screenshot("fading")
    if site.nodes2:
        notices.evaluate("(box) => box.scrollTo(0, box.scrollHeight)")
    else:
        box = notices.bounding_box()
        site.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        site.page.mouse.wheel(0, 600)
    site.page.wait_for_function(f"(box) => !({fades})(box)", arg=notices)
    site.screenshot("scrolled")
    assert site.call("scale") == 1, "the wheel must not zoom as well"
