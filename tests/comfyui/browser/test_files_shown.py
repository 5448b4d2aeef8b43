"""The page on files: their description when they are picked, their settings in one click; and the search for nodes."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.tools.comfyui import example_model
from calibrated_rounding.tools.comfyui.browser import Site

WORDS = ("convert", "compress", "int8", "fp8", "gguf", "low vram", "convrot", "gptq")


def test_picked_file_is_described_without_a_run(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "shown_fp8.safetensors"
    quantize_file(example_model("digits_wan.safetensors"), path, Recipe(format="float8_e4m3fn", scale="mse"))
    name = site.server.add_model("diffusion_models", path)
    node, quantize = (site.create(f"CalibratedRounding{kind}") for kind in ("InspectFile", "QuantizeModel"))
    site.set(node, file=f"diffusion_models/{name}")
    words = site.watch(node, lambda panel: "float8_e4m3fn" in panel["words"])[-1]["words"]
    for part in ("WAN 2.1", "19 layers", "only saves memory here", "scale: mse"):
        assert part in words
    site.screenshot("described")
    site.call("select", quantize)
    site.panel_button(node, "Use these settings")
    site.wait("hasNodes", 3)
    (recipe,) = site.call("nodesOf", "CalibratedRoundingLoadRecipe")
    site.wait("widgetIs", recipe, "file", f"diffusion_models/{name}")
    site.wait("isConnected", quantize, "recipe")
    site.watch(recipe, lambda panel: "scale: mse" in panel["words"])
    site.screenshot("settings")


DROP = """([node, name, data]) => {
  const panel = window.packPage.panel(node);
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name));
  const dropped = new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
  return panel.dispatchEvent(dropped);
}"""


def drop(site: Site, node: int, name: str, data: bytes) -> None:
    """Drop a file on the panel of a node."""
    handled = not site.page.evaluate(DROP, [node, name, b64encode(data).decode()])
    assert handled, "ComfyUI itself would open the file as a workflow"


def watch_words(site: Site, node: int, *parts: str) -> str:
    """Wait until a panel shows all these words; returns everything that it shows then."""
    return str(site.watch(node, lambda panel: all(part in panel["words"] for part in parts))[-1]["words"])


def test_dropped_file_is_found_by_its_name_and_size(site: Site, tmp_path: Path) -> None:
    model, other = example_model("digits_wan.safetensors"), tmp_path / "other.safetensors"
    quantize_file(model, other, Recipe(format="int8_row"))
    node = site.create("CalibratedRoundingInspectFile")
    drop(site, node, model.name, model.read_bytes())
    words = watch_words(site, node, "WAN 2.1", "No layer is quantized")
    site.wait("widgetIs", node, "file", f"diffusion_models/{model.name}")
    assert "In none of ComfyUI" not in words
    drop(site, node, model.name, other.read_bytes())
    watch_words(site, node, model.name, "int8_row", "In none of ComfyUI")
    site.screenshot("another")
    drop(site, node, model.name, model.read_bytes())
    watch_words(site, node, "WAN 2.1", "No layer is quantized")


def test_dropped_file_from_elsewhere_is_described(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.safetensors"
    quantize_file(example_model("digits_wan.safetensors"), path, Recipe(format="int8_convrot", scale="mse"))
    node = site.create("CalibratedRoundingInspectFile")
    picked = site.call("widgetValue", node, "file")
    drop(site, node, path.name, path.read_bytes())
    parts = (path.name, "WAN 2.1", "19 layers", "scale: mse", "int8_convrot: runs in 8 bits here")
    watch_words(site, node, *parts, "copy it into models/diffusion_models")
    assert site.call("widgetValue", node, "file") == picked
    site.screenshot("elsewhere")
    with site.page.expect_download() as download:
        site.panel_button(node, "Model card")
    assert download.value.suggested_filename == "elsewhere.md"
    assert not site.call("pressIn", node, "Use these settings"), "a recipe is loaded from a model folder"
    drop(site, node, "cut.safetensors", path.read_bytes()[:-1])
    watch_words(site, node, "cut.safetensors is truncated: it lacks 1 byte")
    site.screenshot("truncated")
    drop(site, node, "notes.json", b'{"nodes": []}')
    watch_words(site, node, "notes.json is not a safetensors file but a JSON text")


def test_answer_about_the_picked_file_does_not_come_over_a_dropped_one(site: Site) -> None:
    site.page.route("**/calibrated_rounding/inspect?*", lambda route: held.append(route))
    held: list[Any] = []
    node = site.create("CalibratedRoundingInspectFile")
    site.expect(lambda: len(held), 1)
    drop(site, node, "page.html", b"<!DOCTYPE html>")
    watch_words(site, node, "page.html is not a safetensors file")
    with site.page.expect_response("**/calibrated_rounding/inspect?*"):
        held[0].continue_()
    site.wait("waitUntilPainted")
    assert "page.html" in site.read_panel(node)["words"]


def test_recipe_of_a_file_from_elsewhere_is_refused(site: Site) -> None:
    node = site.create("CalibratedRoundingLoadRecipe")
    drop(site, node, "elsewhere.safetensors", bytes(8))
    watch_words(site, node, "elsewhere.safetensors is in none of ComfyUI", "the recipe is read from there")


def test_search_finds_the_pack(site: Site) -> None:
    site.search("")
    for word in WORDS:
        site.replace_search("qqqqqq")
        assert site.becomes_true("offersNone", "Quantize", seconds=10)
        site.replace_search(word)
        assert site.becomes_true("offersAny", "Quantize", seconds=10), f"nothing of the pack is offered for '{word}'"
