"""How this machine runs the chosen format, in the node before a run, and all formats in a table that sets it."""

from __future__ import annotations

from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tests.comfyui.browser.test_readable import check_readable, themes
from calibrated_rounding.tools.comfyui.browser import Site


@themes
def test_chosen_format_says_how_it_runs_here(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.choose(quantize, "format", "float8_e4m3fn")
    site.watch(quantize, lambda panel: "float8_e4m3fn: only saves memory here" in panel["notices"])
    site.screenshot("saves_memory")
    site.panel_button(quantize, "All formats")
    dialog = site.page.locator("dialog.calro-formats")
    rows = dialog.locator("tbody tr")
    rows.first.wait_for()
    site.wait_until_still(dialog)
    check_readable(
        site, ".calro-formats", "all_formats", "int8_blockwise_64", "runs in 8 bits here", "Closeness (PSNR)"
    )
    assert rows.count() == len(FORMATS)
    row = rows.filter(has_text="int8_row")
    assert "runs in 8 bits here" in row.inner_text() and "51.2" in row.inner_text()
    row.get_by_role("button", name="Use").click()
    dialog.wait_for(state="detached")
    assert site.call("widgetValue", quantize, "format") == "int8_row"
    site.watch(quantize, lambda panel: "int8_row: runs in 8 bits here." in panel["notices"])
    site.screenshot("runs_here")


def test_text_encoder_only_saves_memory(site: Site) -> None:
    encoder, together = (site.create(f"CalibratedRounding{kind}") for kind in ("QuantizeTextEncoder", "QuantizeToSize"))
    site.set(encoder, format="int8_row")
    site.watch(encoder, lambda panel: "int8_row: only saves memory here" in panel["notices"])
    words = site.watch(together, lambda panel: "int8_convrot" in panel["words"])[-1]["words"]
    assert "runs in 8 bits here." in words and "Text encoder, all formats: only saves memory here" in words
    site.screenshot("text_encoder")
