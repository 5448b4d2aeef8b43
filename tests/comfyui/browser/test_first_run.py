"""From an empty graph to a saved model, and what the panels show on the way."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

from calibrated_rounding.quant import Recipe, plan_file
from calibrated_rounding.tools.comfyui import example_model
from calibrated_rounding.tools.comfyui.browser import Site

LAYERS = len(plan_file(example_model("digits_wan.safetensors"), Recipe()).layers)


def test_user_quantizes_and_saves_model(site: Site) -> None:
    loader = site.add("Load Diffusion Model")
    quantize, save = (site.drag(title) for title in ("Quantize Model", "Save Quantized Model"))
    site.watch(quantize, lambda panel: "Connect a model" in panel["notices"])
    site.set(loader, unet_name="digits_wan.safetensors")
    site.link(loader, "MODEL", quantize, "model")
    site.link(quantize, "MODEL", save, "model")
    site.choose(quantize, "format", "int8_row")
    runs = "int8_row: runs in 8 bits here."
    site.watch(quantize, lambda panel: str(LAYERS) in panel["facts"] and runs in panel["notices"])
    assert "WAN" in site.read_panel(quantize)["title"]
    site.screenshot("planned")
    site.set_slow_rounding(quantize, 150)
    site.call("waitUntilNodesAreStill")
    before = site.read_panel(quantize)
    site.press("Run")
    seen = site.watch(quantize, lambda panel: panel["phase"] == "running" and panel["bars"] > LAYERS // 3)
    site.screenshot("running")
    seen += site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    site.screenshot("done")
    assert {"running", "done"} <= {panel["phase"] for panel in seen}
    bars = [panel["bars"] for panel in seen if panel["phase"] == "running"]
    assert bars == sorted(bars) and len(set(bars)) > 3, "the strip must grow while the node runs"
    assert any("blocks." in panel["title"] for panel in seen if panel["phase"] == "running")
    assert {(panel["height"], panel["place"], panel["node"]) for panel in seen} == {
        (before["height"], before["place"], before["node"])
    }, "nothing may jump"
    path = Path(site.read_panel(save)["files"][0])
    assert path.is_file() and path.is_relative_to(site.server.output)

    check_report(site, quantize)
    site.load()
    site.watch_until(quantize, "done")
    site.watch_until(save, "done")
    assert site.read_panel(quantize)["bars"] == LAYERS
    check_report(site, quantize)


def check_report(site: Site, node: int) -> None:
    """Open the report with the keyboard, sort, filter, download and close it."""
    page, dialog = site.page, site.open_report(node)
    site.screenshot("report")
    rows = dialog.locator(".calro-layers tbody tr")
    assert rows.count() == LAYERS == dialog.locator("circle").count()
    assert "WAN 2.1 and 2.2" in dialog.locator(".calro-tiles").inner_text()

    dialog.get_by_role("button", name="Weight error", exact=True).click()
    errors = [
        float(text.removesuffix("%"))
        for text in dialog.locator(".calro-layers tbody tr td:nth-child(6)").all_inner_texts()
    ]
    assert errors == sorted(errors, reverse=True)

    dialog.locator("svg").focus()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("tr[aria-selected=true]").count() == 1
    assert "blocks." in dialog.locator(".calro-said").inner_text()

    dialog.get_by_role("searchbox").fill("self_attn.q")
    assert {name.rpartition("self_attn")[2] for name in rows.locator("td:first-child").all_inner_texts()} == {".q"}
    dialog.get_by_role("searchbox").fill("")
    lines = download(site, dialog, "CSV").splitlines()
    assert len(lines) == LAYERS + 1 and lines[0].startswith("name,shape,format,")
    report = json.loads(download(site, dialog, "JSON"))
    assert len(report["layers"]) == report["totals"]["layers"] == LAYERS
    assert report["layers"][0]["shape"] and report["kept"][0]["reason"] and report["recipe"]["format"] == "int8_row"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def download(site: Site, dialog: Any, button: str) -> str:
    """Press a button of the report that downloads a file; returns the file's text."""
    with site.page.expect_download() as result:
        dialog.get_by_role("button", name=button, exact=True).click()
    return Path(result.value.path()).read_text(encoding="utf-8")


def test_csv_cells_run_no_formula(site: Site) -> None:
    errors = {"weight": {"error": 0.25, "nearest": 0.5}, "fell_back": False, "seconds": 1}
    layer = {"name": '=HYPERLINK("x")', "shape": [1, 2], "format": "a\nb\u001b[31m", "errors": errors, "notes": []}
    script = f"import('/extensions/calibrated-rounding/export.mjs').then(({{ toCsv }}) => toCsv([{json.dumps(layer)}]))"
    lines = site.page.evaluate(script).splitlines()
    assert lines[1].startswith(""""'=HYPERLINK(""x"")",1x2,a\\u000ab\\u001b[31m,""")
    (cells,) = csv.DictReader(lines)
    assert (cells["weight.error"], cells["weight.nearest"], cells["projected.error"]) == ("0.25", "0.5", "")


def test_search_finds_nodes_by_title(site: Site) -> None:
    kinds = {
        "Quantize Model": "CalibratedRoundingQuantizeModel",
        "Save Quantized Model": "CalibratedRoundingSaveModel",
        "Quantize": "CalibratedRoundingQuantizeFile",
    }
    for title in kinds:
        site.add(title)
    assert site.call("nodeTypes") == [*kinds.values()]


def test_run_survives_reload_and_is_interrupted(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.set_slow_rounding(quantize, 1500)
    site.queue()
    site.watch(quantize, lambda panel: panel["bars"] >= 2)
    site.reload()
    running = site.watch(quantize, lambda panel: panel["phase"] == "running" and panel["bars"] >= 2)[-1]
    assert "blocks." in running["title"]
    site.watch(quantize, lambda panel: panel["bars"] > running["bars"])
    site.screenshot("after_the_reload")
    site.page.keyboard.press("Control+Alt+Enter")  # the page's button is dead after a reload
    seen = site.watch_until(quantize, "interrupted")
    assert f"of {LAYERS}" in seen[-1]["facts"]
    site.screenshot("interrupted")
    site.reload()
    assert site.watch_until(quantize, "interrupted")[-1]["bars"] == seen[-1]["bars"]
    assert site.read_panel(save)["phase"] == "idle"


def test_cancelled_node_runs_again(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.set_slow_rounding(quantize, 1500)
    site.press("Run")
    site.watch(quantize, lambda panel: panel["phase"] == "running" and panel["bars"] >= 1)
    site.press("Cancel current run")
    stopped = site.watch_until(quantize, "interrupted")[-1]
    assert stopped["title"].startswith("Interrupted") and f"of {LAYERS}" in stopped["facts"]
    assert site.read_panel(save)["phase"] == "idle"
    site.set_slow_rounding(quantize, 1)
    site.press("Run")
    assert site.watch_until(quantize, "done")[-1]["bars"] == LAYERS
    site.watch_until(save, "done")


def test_panel_shows_errors_before_and_after_run(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="float8_e4m3fn")
    site.watch(quantize, lambda panel: "only saves memory here" in panel["notices"])
    site.set(quantize, profile="flux")
    site.watch(quantize, lambda panel: "'flux' does not describe" in panel["notices"])
    site.screenshot("mismatch")
    site.set(quantize, profile="auto", rounding="calibrated")
    site.watch(quantize, lambda panel: "needs a calibration" in panel["notices"])
    site.queue()
    failed = site.watch_until(quantize, "failed")[-1]
    assert "needs recorded inputs" in failed["notices"]
    site.screenshot("failed")
    site.reload()
    site.watch_until(quantize, "failed")


def test_cached_run_shows_same_panels(site: Site, chain: tuple[int, int, int]) -> None:
    loader, first, _ = chain
    second = site.create("CalibratedRoundingQuantizeModel")
    site.set(second, format="mxfp8")
    site.set(first, format="int8_tensor")
    site.connect(loader, "MODEL", second, "model")
    preview = site.create("PreviewAny")
    site.connect(second, "report", preview, "source")
    site.queue()
    for node, name in ((first, "int8_tensor"), (second, "mxfp8")):
        assert name in site.watch_until(node, "done")[-1]["notices"]
    panels = [site.read_panel(node) for node in (first, second)]
    site.server.wait_until_idle()
    site.server.post("/history", {"clear": True})
    site.reload()
    site.watch_until(first, "idle")
    site.queue()
    for node in (first, second):
        site.watch_until(node, "done")
    assert [site.read_panel(node)["facts"] for node in (first, second)] == [entry["facts"] for entry in panels]


def test_panel_fits_in_themes_and_widths(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="mxfp8")
    site.queue()
    site.watch_until(quantize, "done")
    for palette, width in product(("light", "dark"), (240, 460)):
        site.call("setSetting", "Comfy.ColorPalette", palette)
        site.resize(quantize, width)
        site.screenshot(f"{palette}_{width}")
        site.expect(lambda: site.call("listOverflowing", quantize), [])


def test_panel_speaks_the_users_language(site: Site) -> None:
    site.open(**{"Comfy.Locale": "ja"})
    try:
        node = site.create("CalibratedRoundingQuantizeModel")
        site.watch(node, lambda panel: panel["title"] == "未実行")
        site.expect(lambda: site.call("nodeTitles"), ["モデルの量子化"])
        site.screenshot("japanese")
    finally:
        site.server.post("/settings", {"Comfy.Locale": "en"})
