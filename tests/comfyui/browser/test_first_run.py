"""From an empty graph to a saved model, and everything that is shown on the way."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from calibrated_rounding.quant import Recipe, plan_file
from calibrated_rounding.tools.comfyui import example_model
from calibrated_rounding.tools.comfyui.site import Site

LAYERS = len(plan_file(example_model("digits_wan.safetensors"), Recipe()).layers)


def test_from_an_empty_graph_to_a_saved_model(site: Site) -> None:
    loader = site.add("Load Diffusion Model")
    quantize, save = (site.drag(title) for title in ("Quantize Model", "Save Quantized Model"))
    assert "Connect a model" in site.shown(quantize)["notices"]
    site.set(loader, unet_name="digits_wan.safetensors")
    site.link(loader, "MODEL", quantize, "model")
    site.link(quantize, "MODEL", save, "model")
    site.choose(quantize, "format", "int8_row")
    site.watch(quantize, lambda shown: str(LAYERS) in shown["facts"] and shown["notices"] == "int8_row")
    assert "WAN" in site.shown(quantize)["title"]
    site.shot("planned")
    site.learned(quantize, 150)
    before = site.shown(quantize)
    site.press("Run")
    seen = site.watch(quantize, lambda shown: shown["phase"] == "running" and shown["bars"] > LAYERS // 3)
    site.shot("running")
    seen += site.until(quantize, "done")
    site.until(save, "done")
    site.shot("done")
    assert {"running", "done"} <= {shown["phase"] for shown in seen}
    bars = [shown["bars"] for shown in seen if shown["phase"] == "running"]
    assert bars == sorted(bars) and len(set(bars)) > 3, "the strip must grow while the node runs"
    assert any("blocks." in shown["title"] for shown in seen if shown["phase"] == "running")
    assert {(shown["height"], shown["place"], shown["node"]) for shown in seen} == {
        (before["height"], before["place"], before["node"])
    }, "nothing may jump"
    path = Path(site.shown(save)["words"].replace("\n", ""))
    assert path.is_file() and path.is_relative_to(site.server.output)

    report_is_complete(site, quantize)
    site.load()
    site.until(quantize, "done")
    site.until(save, "done")
    assert site.shown(quantize)["bars"] == LAYERS
    report_is_complete(site, quantize)


def report_is_complete(site: Site, node: int) -> None:
    """Open the report with the keyboard, sort, filter, take it away, and close it."""
    page, dialog = site.page, site.report(node)
    site.shot("report")
    rows = dialog.locator(".calro-layers tbody tr")
    assert rows.count() == LAYERS == dialog.locator("circle").count()

    dialog.get_by_role("button", name="Weight error", exact=True).click()
    errors = [float(text) for text in dialog.locator(".calro-layers tbody tr td:nth-child(6)").all_inner_texts()]
    assert errors == sorted(errors, reverse=True)

    dialog.locator("svg").focus()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("tr[aria-selected=true]").count() == 1
    assert "blocks." in dialog.locator(".calro-said").inner_text()

    dialog.get_by_role("searchbox").fill("self_attn.q")
    assert {name.rpartition("self_attn")[2] for name in rows.locator("td:first-child").all_inner_texts()} == {".q"}
    dialog.get_by_role("searchbox").fill("")
    lines = taken(site, dialog, "CSV").splitlines()
    assert len(lines) == LAYERS + 1 and lines[0].startswith("name,shape,format,")
    report = json.loads(taken(site, dialog, "JSON"))
    assert len(report["layers"]) == report["totals"]["layers"] == LAYERS
    assert report["layers"][0]["shape"] and report["kept"][0]["reason"] and report["recipe"]["format"] == "int8_row"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def taken(site: Site, dialog: Any, button: str) -> str:
    with site.page.expect_download() as download:
        dialog.get_by_role("button", name=button, exact=True).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_csv_cells_run_no_formula(site: Site) -> None:
    layer = json.dumps({"name": '=HYPERLINK("x")', "shape": [1, 2], "format": "a\nb\u001b[31m", "error": -0.5})
    script = f"import('/extensions/calibrated-rounding/export.mjs').then(({{ toCsv }}) => toCsv([{layer}]))"
    assert site.page.evaluate(script).splitlines() == [
        "name,shape,format,error",
        """"'=HYPERLINK(""x"")",1x2,a\\u000ab\\u001b[31m,-0.5""",
    ]


def test_nodes_are_found_by_what_they_are_called(site: Site) -> None:
    kinds = {
        "Quantize Model": "CalibratedRoundingQuantizeModel",
        "Save Quantized Model": "CalibratedRoundingSaveModel",
        "Quantize File": "CalibratedRoundingQuantizeFile",
    }
    for title in kinds:
        site.add(title)
    assert site.page.evaluate("() => window.app.graph.nodes.map((node) => node.type)") == [*kinds.values()]


def test_a_reload_in_the_middle_and_an_interrupt(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.learned(quantize, 1500)
    site.queue()
    site.watch(quantize, lambda shown: shown["bars"] >= 2)
    site.reload()
    running = site.watch(quantize, lambda shown: shown["phase"] == "running" and shown["bars"] >= 2)[-1]
    assert "blocks." in running["title"]
    site.watch(quantize, lambda shown: shown["bars"] > running["bars"])
    site.shot("after_the_reload")
    site.page.keyboard.press("Control+Alt+Enter")  # the page's button is dead after a reload
    seen = site.until(quantize, "interrupted")
    assert f"of {LAYERS}" in seen[-1]["facts"]
    site.shot("interrupted")
    site.reload()
    assert site.until(quantize, "interrupted")[-1]["bars"] == seen[-1]["bars"]
    assert site.shown(save)["phase"] == "idle"


def test_the_pages_own_button_interrupts_and_the_node_runs_again(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.learned(quantize, 1500)
    site.press("Run")
    site.watch(quantize, lambda shown: shown["phase"] == "running" and shown["bars"] >= 1)
    site.press("Cancel current run")
    stopped = site.until(quantize, "interrupted")[-1]
    assert stopped["title"].startswith("Interrupted") and f"of {LAYERS}" in stopped["facts"]
    assert site.shown(save)["phase"] == "idle"
    site.learned(quantize, 1)
    site.press("Run")
    assert site.until(quantize, "done")[-1]["bars"] == LAYERS
    site.until(save, "done")


def test_what_is_wrong_is_said_before_the_run_and_after_it(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="float8_e4m3fn")
    site.watch(quantize, lambda shown: "emulated on CPU" in shown["notices"])
    site.set(quantize, profile="flux")
    site.watch(quantize, lambda shown: "'flux' does not describe" in shown["notices"])
    site.shot("mismatch")
    site.set(quantize, profile="auto", rounding="calibrated")
    site.watch(quantize, lambda shown: "needs a calibration" in shown["notices"])
    site.queue()
    failed = site.until(quantize, "failed")[-1]
    assert "needs recorded inputs" in failed["notices"]
    site.shot("failed")
    site.reload()
    site.until(quantize, "failed")


def test_two_nodes_and_a_cached_run(site: Site, chain: tuple[int, int, int]) -> None:
    loader, first, _ = chain
    second = site.create("CalibratedRoundingQuantizeModel")
    site.set(second, format="mxfp8")
    site.set(first, format="int8_tensor")
    site.connect(loader, "MODEL", second, "model")
    preview = site.create("PreviewAny")
    site.connect(second, "report", preview, "source")
    site.queue()
    for node, name in ((first, "int8_tensor"), (second, "mxfp8")):
        assert name in site.until(node, "done")[-1]["notices"]
    shown = [site.shown(node) for node in (first, second)]
    site.server.post("/history", {"clear": True})
    site.reload()
    site.until(first, "idle")
    site.queue()
    for node in (first, second):
        site.until(node, "done")
    assert [site.shown(node)["facts"] for node in (first, second)] == [entry["facts"] for entry in shown]


def test_the_panel_in_both_themes_narrow_and_wide(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="mxfp8")
    site.queue()
    site.until(quantize, "done")
    for palette, width in product(("light", "dark"), (240, 460)):
        site.page.evaluate("(name) => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        site.resize(quantize, width)
        site.shot(f"{palette}_{width}")
        assert site.page.evaluate(OVERFLOWING, site.panel(quantize)) == []


OVERFLOWING = """(panel) => [...panel.querySelectorAll("*")]
  .filter((part) => part.clientWidth && part.scrollWidth > part.clientWidth + 1)
  .filter((part) => getComputedStyle(part).overflowX === "visible")
  .map((part) => part.outerHTML)"""


def test_the_words_are_those_of_the_users_language(site: Site) -> None:
    site.open(**{"Comfy.Locale": "ja"})
    try:
        node = site.create("CalibratedRoundingQuantizeModel")
        site.watch(node, lambda shown: shown["title"] == "未実行")
        assert site.page.evaluate("() => window.app.graph.nodes[0].title") == "モデルの量子化"
        site.shot("japanese")
    finally:
        site.server.post("/settings", {"Comfy.Locale": "en"})
