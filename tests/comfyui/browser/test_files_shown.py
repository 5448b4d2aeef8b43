"""The page on files: their description when they are picked, their settings in one click; and the search for nodes."""

from __future__ import annotations

from pathlib import Path

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
    assert site.call("widgetValue", recipe, "file") == f"diffusion_models/{name}"
    assert site.call("isConnected", quantize, "recipe")
    site.watch(recipe, lambda panel: "scale: mse" in panel["words"])
    site.screenshot("settings")


def test_search_finds_the_pack(site: Site) -> None:
    site.search("")
    for word in WORDS:
        site.replace_search("qqqqqq")
        assert site.becomes_true("offersNone", "Quantize", seconds=10)
        site.replace_search(word)
        assert site.becomes_true("offersAny", "Quantize", seconds=10), f"nothing of the pack is offered for '{word}'"
