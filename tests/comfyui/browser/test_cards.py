"""The model card of a file that Quantize has written, from a button in its panel."""

from __future__ import annotations

from pathlib import Path

from calibrated_rounding.tools.comfyui.browser import Site


def test_card_of_a_quantized_file_is_downloaded(site: Site) -> None:
    node = site.create("CalibratedRoundingQuantizeFile")
    site.set(node, file="diffusion_models/digits_wan.safetensors", format="int8_row")
    site.press("Run")
    site.watch_until(node, "done")
    site.screenshot("done")
    site.expect(lambda: site.call("listCutOff", node), [])
    with site.page.expect_download() as result:
        site.panel_button(node, "Model card")
    card = Path(result.value.path()).read_text(encoding="utf-8")
    assert result.value.suggested_filename.startswith("digits_wan_int8_row") and "## How it was made" in card
    assert "weight error" in card.partition("## How close it is")[2]
    site.choose(node, "format", "int8_tensor")
    site.watch(node, lambda panel: panel["phase"] == "changed")
    assert "Model card" not in site.panel(node).inner_text(), "the button is for the run that is shown"
