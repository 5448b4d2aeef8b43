"""A panel after its run: the result as long as its settings stay, the plan beside the last run where they do not."""

from __future__ import annotations

import json

from calibrated_rounding.tests.comfyui.browser.test_first_run import LAYERS, download
from calibrated_rounding.tools.comfyui.browser import Site
from calibrated_rounding.tools.comfyui.browser.site import Panel

Chain = tuple[int, int, int]


def test_changed_settings_show_plan_beside_last_run(site: Site, chain: Chain) -> None:
    loader, quantize, _ = chain
    site.set(quantize, format="int8_row")
    site.queue()
    done = site.watch_until(quantize, "done")[-1]
    site.choose(quantize, "format", "mxfp8")
    title = "Planned (last run: 3.03 MB)"
    changed = site.watch(quantize, lambda panel: panel["title"].replace("\n", " ") == title)[-1]
    assert is_planned(changed) and str(LAYERS) in changed["facts"] and changed["bars"] == 0
    site.watch(quantize, lambda panel: "mxfp8: only saves memory here" in panel["notices"])
    site.screenshot("changed")
    site.reload()
    site.watch(quantize, lambda panel: is_planned(panel) and panel["title"] == changed["title"])
    site.set(quantize, format="int8_row")
    same = {name: done[name] for name in ("phase", "facts", "bars")}  # the same settings have the same result
    site.watch(quantize, lambda panel: same.items() <= panel.items())
    site.call("setMode", loader, 4)
    site.watch(quantize, lambda panel: panel["phase"] == "done")
    site.call("setMode", loader, 0)
    other = site.create("UNETLoader")
    site.connect(other, "MODEL", quantize, "model")
    site.watch_until(quantize, "changed")


def is_planned(panel: Panel) -> bool:
    return panel["phase"] == "changed" and panel["title"].startswith("Planned")


def test_corrected_setting_clears_old_error(site: Site, chain: Chain) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="int8_row", profile="flux")
    site.queue()
    failed = site.watch_until(quantize, "failed")[-1]
    assert "'flux' does not describe" in failed["notices"]
    site.set(quantize, profile="auto")
    site.watch(quantize, lambda panel: is_planned(panel) and "flux" not in panel["notices"])
    assert "last run: failed" in site.read_panel(quantize)["title"]
    site.screenshot("corrected")
    site.set(quantize, rounding="calibrated")
    site.queue()
    second = site.watch(quantize, is_uncalibrated)[-1]
    assert "flux" not in second["notices"]
    site.reload()
    site.watch(quantize, is_uncalibrated)


def is_uncalibrated(panel: Panel) -> bool:
    return panel["phase"] == "failed" and "needs recorded inputs" in panel["notices"]


def test_linked_recipe_counts_as_settings(site: Site, chain: Chain) -> None:
    _, quantize, _ = chain
    recipe = site.create("CalibratedRoundingRecipe")
    site.connect(recipe, "recipe", quantize, "recipe")
    site.set(recipe, format="int8_tensor")
    site.queue()
    site.watch_until(quantize, "done")
    site.set(recipe, format="int8_row")
    site.watch_until(quantize, "changed")
    site.set(recipe, format="int8_tensor")
    site.watch_until(quantize, "done")


def test_auto_shows_sizes_within_reach(site: Site, chain: Chain) -> None:
    _, quantize, _ = chain
    site.choose(quantize, "format", "auto")
    site.watch(quantize, lambda panel: f"{LAYERS} to choose" in panel["facts"] and "Reachable" in panel["facts"])
    site.choose(quantize, "format.target", "share")
    site.set(quantize, format__target__target_share=0.8)
    site.watch(quantize, lambda panel: "4.45 → 3.56 MB" in panel["facts"] and "80%" in panel["facts"])
    site.screenshot("reachable")
    site.set(quantize, format__target__target_share=0.3)
    site.watch(quantize, lambda panel: "cannot take it below" in panel["notices"])
    site.screenshot("out_of_reach")


def test_target_in_gigabytes_starts_at_model_size(site: Site, chain: Chain) -> None:
    loader, quantize, _ = chain
    name = write_large_model(site)
    site.set(loader, unet_name=name)
    site.choose(quantize, "format", "auto")
    site.choose(quantize, "format.target", "gigabytes")
    site.wait("widgetIs", quantize, "format.target.target_gb", 1.2)
    site.set(quantize, format__target__target_gb=8.0)
    site.call("loadGraph", site.call("serialize"))
    site.watch(quantize, lambda panel: "leaves every layer as it is" in panel["notices"])
    assert site.call("widgetValue", quantize, "format.target.target_gb") == 8.0, "saved values stay"


def test_typed_number_keeps_its_digits(site: Site, chain: Chain) -> None:
    _, quantize, _ = chain
    size = site.create("CalibratedRoundingQuantizeToSize")
    site.type_number(size, "gigabytes", "6.257")
    site.wait("widgetIs", size, "gigabytes", 6.257)
    site.choose(quantize, "format", "auto")
    site.choose(quantize, "format.target", "gigabytes")
    site.type_number(quantize, "format.target.target_gb", "7.25")
    site.wait("widgetIs", quantize, "format.target.target_gb", 7.25)
    site.screenshot("typed")
    if site.nodes2:
        fields = [site.number_field(size, "gigabytes"), site.number_field(quantize, "format.target.target_gb")]
        assert [field.input_value() for field in fields] == ["6.257", "7.25"]


def write_large_model(site: Site) -> str:
    """Write the header of a file of 2 GB, without the weights; returns the name that the loader shows."""
    shape = [20_000, 50_000]
    tensor = {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}
    header = json.dumps({"blocks.0.linear.weight": tensor}).encode()
    path = site.server.base / "models" / "diffusion_models" / "large.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensor["data_offsets"][1])
    return path.name


def test_panel_is_readable_in_every_state(site: Site, chain: Chain) -> None:
    _, quantize, _ = chain
    site.set(quantize, format="auto")
    site.watch(quantize, lambda panel: "Reachable" in panel["facts"])
    check_fit(site, quantize, "reachable")
    site.set(quantize, format="int8_row")
    site.queue()
    site.watch_until(quantize, "done")
    check_fit(site, quantize, "done")
    site.set(quantize, format="mxfp8", exclude="nothing")
    site.watch_until(quantize, "changed")
    check_fit(site, quantize, "changed")
    site.set(quantize, profile="flux")
    site.queue()
    site.watch_until(quantize, "failed")
    check_fit(site, quantize, "failed")


def check_fit(site: Site, node: int, state: str) -> None:
    for palette, width in (("light", 240), ("dark", 340)):
        site.call("setSetting", "Comfy.ColorPalette", palette)
        site.resize(node, width)
        site.screenshot(f"{state}_{palette}_{width}")
        site.expect(lambda: site.call("listOverflowing", node), [])


def test_calibrated_result_leads_with_gain(site: Site) -> None:
    calibrate, quantize = calibrated_encoder(site, prompts="a dog on a beach\nthe number seven in red")
    site.queue()
    done = site.watch_until(quantize, "done")[-1]
    site.screenshot("calibrated")
    dialog = site.open_report(quantize)
    site.screenshot("calibrated_report")
    pair = json.loads(download(site, dialog, "JSON"))["totals"]["output_w8a8"]
    assert f"{1 - pair['error'] / pair['nearest']:.0%} closer than nearest" in done["title"]
    facts = done["facts"].split("\n")
    assert facts[:3] == ["Output error (W8A8)", f"nearest {pair['nearest']:.2%}", f"{pair['error']:.2%}"]
    assert "Weight error" not in facts
    site.page.keyboard.press("Escape")
    site.set(quantize, format="mxfp8")
    ending = f"output error {pair['error']:.2%})"
    site.watch(quantize, lambda panel: panel["phase"] == "changed" and ending in panel["title"])
    assert calibrate


def test_thin_calibration_warns_in_both_nodes(site: Site) -> None:
    calibrate, quantize = calibrated_encoder(site, prompts="a")
    site.queue()
    done = site.watch_until(quantize, "done")[-1]
    site.screenshot("thin")
    for panel in (site.read_panel(calibrate)["words"], done["notices"]):
        assert "too thin" in panel and "fewer than 8 rows" in panel and "more prompts" in panel
    site.set(quantize, format="mxfp8")
    # The calibration is known before the next run.
    site.watch(quantize, lambda panel: panel["phase"] == "changed" and "too thin" in panel["notices"])


def calibrated_encoder(site: Site, prompts: str) -> tuple[int, int]:
    """Ids of a calibrate and a quantize node behind the example encoder."""
    kinds = ("LoadExampleTextEncoder", "CalibrateTextEncoder", "QuantizeTextEncoder", "SaveTextEncoder")
    loader, calibrate, quantize, save = (site.create(f"CalibratedRounding{kind}") for kind in kinds)
    for node in (calibrate, quantize):
        site.connect(loader, "CLIP", node, "clip")
    site.connect(calibrate, "calibration", quantize, "calibration")
    site.connect(quantize, "CLIP", save, "clip")
    site.set(calibrate, prompts=prompts)
    site.set(quantize, format="int8_row", rounding="calibrated")
    return calibrate, quantize
