"""More of the panels and the report: error against size, text encoders, Quantize, narrow nodes."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from calibrated_rounding.tests.comfyui.browser.test_first_run import LAYERS, download
from calibrated_rounding.tools.comfyui.browser import Site

SIZES = ((1280, 800), (1024, 768))


def test_report_shows_error_for_every_size(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.choose(quantize, "format", "auto")
    site.choose(quantize, "format.target", "share")
    site.set(quantize, format__target__target_share=0.8)
    site.press("Run")
    site.watch_until(quantize, "done")
    dialog = site.open_report(quantize)
    site.screenshot("tradeoff")
    report = json.loads(download(site, dialog, "JSON"))
    assert {"format": "auto", "target_share": 0.8}.items() <= report["recipe"].items()
    check_size_curve(dialog, report["precision"])
    check_keyboard(site, dialog, report)
    check_table_fits(site, dialog)


def check_table_fits(site: Site, dialog: Any) -> None:
    for width, height in SIZES:
        site.page.set_viewport_size({"width": width, "height": height})
        site.wait_until_still(dialog)
        site.screenshot(f"report_{width}")
        table = dialog.locator(".calro-layers").evaluate("(place) => [place.scrollWidth, place.clientWidth]")
        assert table[0] <= table[1], f"the table must fit at {width} pixels"


def test_calibrated_text_encoder_shows_w8a8_error(site: Site) -> None:
    loader, calibrate, quantize, save = (
        site.create(f"CalibratedRounding{kind}")
        for kind in ("LoadExampleTextEncoder", "CalibrateTextEncoder", "QuantizeTextEncoder", "SaveTextEncoder")
    )
    for node in (calibrate, quantize):
        site.connect(loader, "CLIP", node, "clip")
    site.connect(calibrate, "calibration", quantize, "calibration")
    site.connect(quantize, "CLIP", save, "clip")
    site.set(quantize, format="int8_row", rounding="calibrated")
    site.watch(quantize, lambda panel: panel["title"].startswith("Planned") and "Gemma" in panel["title"])
    site.press("Run")
    done = site.watch_until(quantize, "done")[-1]
    site.watch_until(save, "done")
    site.screenshot("text_encoder")
    facts = done["facts"].split("\n")
    dialog = site.open_report(quantize)
    report = json.loads(download(site, dialog, "JSON"))
    pair = report["totals"]["output_w8a8"]
    assert facts[:3] == ["Output error (W8A8)", f"nearest {pair['nearest']:.2%}", f"{pair['error']:.2%}"]
    worst = max(report["layers"], key=lambda layer: layer["errors"]["output_w8a8"]["error"])
    assert worst["name"] in facts, "the W8A8 error decides which layer is worst"
    head, *rows = csv.reader(download(site, dialog, "CSV").splitlines())
    figure = head.index("output_w8a8.error")
    assert [float(row[figure]) for row in rows] == [
        layer["errors"]["output_w8a8"]["error"] for layer in report["layers"]
    ]
    check_table_fits(site, dialog)
    path = Path(site.read_panel(save)["files"][0])
    assert path.is_file() and path.is_relative_to(site.server.output)


def check_size_curve(dialog: Any, precision: dict[str, Any]) -> None:
    """Check the curve: a point per size, smaller errors lower, larger sizes to the right, one of them chosen."""
    chosen = precision["chosen"]
    sizes = {(point["nbytes"], point["error"]) for point in [*precision["curve"], chosen]}
    places = dialog.locator(".calro-tradeoff circle").evaluate_all(
        "(all) => all.map((c) => [+c.attributes.cx.value, +c.attributes.cy.value])"
    )
    assert len(places) == len(sizes) > 3
    for (left, upper), (right, lower) in pairwise(places):
        assert left <= right and upper <= lower
    assert dialog.locator(".calro-tradeoff .calro-choice").count() == 1
    assert f"{chosen['nbytes'] / 1e6:.3g} MB" in dialog.locator(".calro-tradeoff .calro-chosen").text_content()


def check_keyboard(site: Site, dialog: Any, report: dict[str, Any]) -> None:
    chart, words = dialog.locator(".calro-tradeoff svg"), dialog.locator(".calro-tradeoff .calro-said")
    assert words.inner_text().startswith("Chosen: ") and words.inner_text() in chart.get_attribute("aria-label")
    chart.focus()
    site.page.keyboard.press("End")
    largest = words.inner_text()
    assert largest.startswith(f"{report['precision']['curve'][-1]['nbytes'] / 1e6:.3g} MB")
    site.page.keyboard.press("ArrowLeft")
    assert words.inner_text() != largest
    assert dialog.locator(".calro-tradeoff .calro-marked").count() == 1
    assert dialog.locator("tr[aria-selected=true]").count() == 0, "no layer may be selected by a size"


def test_quantize_file_shows_full_panel(site: Site) -> None:
    node = site.create("CalibratedRoundingQuantizeFile")
    site.set(node, file="diffusion_models/digits_wan.safetensors")
    site.watch(node, lambda panel: panel["title"].startswith("Planned") and str(LAYERS) in panel["facts"])
    site.set_slow_rounding(node, 100)
    site.press("Run")
    running = site.watch(node, lambda panel: panel["phase"] == "running" and panel["bars"] > 2)[-1]
    assert {"Layers", "Time left", "Saved"} <= set(running["facts"].split("\n"))
    done = site.watch_until(node, "done")[-1]
    facts = done["facts"].split("\n")
    assert done["title"].startswith("Done in ") and {"Size", "Layers", "Kept layers"} <= set(facts)
    assert "Weight error" not in facts and "unknown" in facts
    site.screenshot("file")
    path = Path(done["files"][0])
    assert path.is_file() and path.is_relative_to(site.server.output), "the node must say where the file is"
    assert site.open_report(node).locator(".calro-layers tbody tr").count() == LAYERS


def test_narrow_node_is_readable(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.choose(quantize, "format", "mxfp8")
    site.press("Run")
    site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    for node in (quantize, save):
        site.resize(node, 240)
    site.screenshot("narrow")
    site.expect(lambda: site.call("listCutOff", quantize), [])
    assert site.panel(quantize).query_selector(".calro-buttons button").is_enabled()
    path = Path(site.read_panel(save)["files"][0])
    assert path.is_file()


def test_complaints_of_pack_are_recorded(site: Site) -> None:
    """The fixture `site` fails every other test that has complaints."""
    site.page.evaluate("() => console.error('calibrated-rounding: said by a test')")
    site.page.evaluate("() => console.error('said by another pack')")
    script = "import('/extensions/calibrated-rounding/graph.mjs').then(({ values }) => values(null))"
    site.page.evaluate(f"() => {{ {script}; }}")
    site.page.evaluate("() => fetch('/extensions/calibrated-rounding/missing.mjs')")
    heard = site.wait_for_complaints(3)
    for words in ("said by a test", "TypeError", "missing.mjs"):
        assert sum(words in text for text in heard) == 1
    assert not any("another pack" in text for text in heard)
    site.complaints.clear()
