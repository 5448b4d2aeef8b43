"""What the panels and the report show, beside the first run: what every size costs, and nodes that work on files."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from calibrated_rounding.tests.comfyui.browser.test_first_run import LAYERS, taken
from calibrated_rounding.tools.comfyui.site import Site

SIZES = ((1280, 800), (1024, 768))


def test_what_every_size_would_cost(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.choose(quantize, "format", "auto")
    site.choose(quantize, "format.target", "share")
    site.set(quantize, format__target__target_share=0.6)
    site.press("Run")
    site.until(quantize, "done")
    dialog = site.report(quantize)
    site.shot("tradeoff")
    report = json.loads(taken(site, dialog, "JSON"))
    assert {"format": "auto", "target_share": 0.6}.items() <= report["recipe"].items()
    sizes_are_to_scale(dialog, report["precision"])
    words_follow_the_keys(site, dialog, report)
    the_table_fits(site, dialog)


def the_table_fits(site: Site, dialog: Any) -> None:
    for width, height in SIZES:
        site.page.set_viewport_size({"width": width, "height": height})
        site.still(dialog)
        site.shot(f"report_{width}")
        table = dialog.locator(".calro-layers").evaluate("(place) => [place.scrollWidth, place.clientWidth]")
        assert table[0] <= table[1], f"the table must fit at {width} pixels"


def test_a_text_encoder_with_a_calibration(site: Site) -> None:
    loader, calibrate, quantize, save = (
        site.create(f"CalibratedRounding{kind}")
        for kind in ("LoadExampleTextEncoder", "CalibrateTextEncoder", "QuantizeTextEncoder", "SaveTextEncoder")
    )
    for node in (calibrate, quantize):
        site.connect(loader, "CLIP", node, "clip")
    site.connect(calibrate, "calibration", quantize, "calibration")
    site.connect(quantize, "CLIP", save, "clip")
    site.set(quantize, format="int8_row", rounding="calibrated")
    site.watch(quantize, lambda shown: shown["title"].startswith("Planned") and "Gemma" in shown["title"])
    site.press("Run")
    done = site.until(quantize, "done")[-1]
    site.until(save, "done")
    site.shot("text_encoder")
    facts = done["facts"].split("\n")
    dialog = site.report(quantize)
    report = json.loads(taken(site, dialog, "JSON"))
    pair = report["totals"]["output_w8a8"]
    assert facts[:3] == ["Output error (W8A8)", f"nearest {pair['nearest']:.4f}", f"{pair['error']:.4f}"]
    worst = max(report["layers"], key=lambda layer: layer["errors"]["output_w8a8"]["error"])
    assert worst["name"] in facts, "what the picture sees makes the worst layer"
    head, *rows = csv.reader(taken(site, dialog, "CSV").splitlines())
    figure = head.index("output_w8a8.error")
    assert [float(row[figure]) for row in rows] == [
        layer["errors"]["output_w8a8"]["error"] for layer in report["layers"]
    ]
    the_table_fits(site, dialog)
    path = Path(site.shown(save)["words"].replace("\n", ""))
    assert path.is_file() and path.is_relative_to(site.server.output)


def sizes_are_to_scale(dialog: Any, precision: dict[str, Any]) -> None:
    """A point for every size, smaller errors lower and larger sizes further to the right; one of them is the choice."""
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


def words_follow_the_keys(site: Site, dialog: Any, report: dict[str, Any]) -> None:
    chart, words = dialog.locator(".calro-tradeoff svg"), dialog.locator(".calro-tradeoff .calro-said")
    assert words.inner_text().startswith("Chosen: ") and words.inner_text() in chart.get_attribute("aria-label")
    chart.focus()
    site.page.keyboard.press("End")
    largest = words.inner_text()
    assert largest.startswith(f"{report['precision']['curve'][-1]['nbytes'] / 1e6:.3g} MB")
    site.page.keyboard.press("ArrowLeft")
    assert words.inner_text() != largest
    assert dialog.locator(".calro-tradeoff .calro-marked").count() == 1
    assert dialog.locator("tr[aria-selected=true]").count() == 0, "sizes are no layers"


def test_quantize_file_tells_what_quantize_model_tells(site: Site) -> None:
    node = site.create("CalibratedRoundingQuantizeFile")
    site.set(node, file="diffusion_models/digits_wan.safetensors")
    site.watch(node, lambda shown: shown["title"].startswith("Planned") and str(LAYERS) in shown["facts"])
    site.learned(node, 100)
    site.press("Run")
    running = site.watch(node, lambda shown: shown["phase"] == "running" and shown["bars"] > 2)[-1]
    assert {"Layers", "Time left", "Saved"} <= set(running["facts"].split("\n"))
    done = site.until(node, "done")[-1]
    assert done["title"].startswith("Done in ") and {"Size", "Weight error", "Worst", "Slowest"} <= set(
        done["facts"].split("\n")
    )
    site.shot("file")
    path = Path(done["notices"].strip())
    assert path.is_file() and path.is_relative_to(site.server.output), "the node must say where the file is"
    assert site.report(node).locator(".calro-layers tbody tr").count() == LAYERS


def test_everything_can_be_read_in_a_narrow_node(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.choose(quantize, "format", "mxfp8")
    site.press("Run")
    site.until(quantize, "done")
    site.until(save, "done")
    for node in (quantize, save):
        site.resize(node, 240)
    site.shot("narrow")
    assert site.page.evaluate(CUT, site.panel(quantize)) == []
    assert site.panel(quantize).query_selector("button").is_enabled()
    path = Path(site.shown(save)["words"].replace("\n", ""))
    assert path.is_file()


CUT = """(panel) => {
  const box = panel.getBoundingClientRect();
  const out = (part) => {
    const { left, right, top, bottom } = part.getBoundingClientRect();
    return left < box.left || right > box.right + 1 || top < box.top || bottom > box.bottom + 1;
  };
  const clipped = (part) => part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1;
  const words = [...panel.querySelectorAll("b, button, .calro-facts, .calro-facts > span > span, .calro-notices")];
  return words.filter((part) => part.offsetWidth && (out(part) || clipped(part))).map((part) => part.outerHTML);
}"""


def test_what_the_pack_complains_of_is_heard(site: Site) -> None:
    """Every other test ends with a look at what was heard (conftest.py)."""
    site.page.evaluate("() => console.error('calibrated-rounding: said by a test')")
    site.page.evaluate("() => console.error('said by another pack')")
    script = "import('/extensions/calibrated-rounding/graph.mjs').then(({ values }) => values(null))"
    site.page.evaluate(f"() => {{ {script}; }}")
    site.page.evaluate("() => fetch('/extensions/calibrated-rounding/missing.mjs')")
    heard = site.heard(3)
    for words in ("said by a test", "TypeError", "missing.mjs"):
        assert sum(words in text for text in heard) == 1
    assert not any("another pack" in text for text in heard)
    site.complaints.clear()
