"""The page on files: their description when they are picked, their settings in one click; and the search for nodes."""

from __future__ import annotations

from pathlib import Path

from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.tools.comfyui import example_model
from calibrated_rounding.tools.comfyui.browser import Site

SETTLED = 1000
"""Milliseconds after which the panel has answered."""
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


DROP = """([node, name, size]) => {
  const panel = window.packPage.panel(node);
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(size)], name));
  const dropped = new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
  return panel.dispatchEvent(dropped);
}"""


def test_dropped_file_is_found_by_its_name(site: Site) -> None:
    model = example_model("digits_wan.safetensors")
    node = site.create("CalibratedRoundingInspectFile")

    def drop(name: str, size: int) -> None:
        assert not site.page.evaluate(DROP, [node, name, size]), "ComfyUI itself would open the file as a workflow"

    drop("elsewhere.safetensors", 8)
    site.watch(node, lambda panel: "elsewhere.safetensors is in none of ComfyUI" in panel["words"])
    site.page.wait_for_timeout(SETTLED)
    assert "elsewhere" in site.read_panel(node)["words"], "the answer about the picked file must not come over it"
    site.screenshot("elsewhere")
    drop(model.name, model.stat().st_size)
    words = site.watch(node, lambda panel: "WAN 2.1" in panel["words"])[-1]["words"]
    assert site.call("widgetValue", node, "file") == f"diffusion_models/{model.name}"
    assert "another size" not in words
    drop(model.name, 8)
    site.watch(node, lambda panel: "The dropped file has another size" in panel["words"])
    site.screenshot("another")


def test_search_finds_the_pack(site: Site) -> None:
    site.search("")
    for word in WORDS:
        site.replace_search("qqqqqq")
        assert site.becomes_true("offersNone", "Quantize", seconds=10)
        site.replace_search(word)
        assert site.becomes_true("offersAny", "Quantize", seconds=10), f"nothing of the pack is offered for '{word}'"
