"""Saved files in the page: their names and sizes, the loaders' lists, and the two buttons."""

from __future__ import annotations

from pathlib import Path

from calibrated_rounding.tools.comfyui.browser import Site


def test_saved_file_goes_into_a_loader_in_one_click(site: Site, chain: tuple[int, int, int]) -> None:
    loader, quantize, save = chain
    site.set(quantize, format="int8_row")
    assert site.call("widgetValue", save, "filename_prefix") == "diffusion_models/%model%_%format%"
    site.press("Run")
    panel = site.watch_until(save, "done")[-1]
    path = Path(panel["files"][0])
    assert path.is_file() and path.parent == site.server.output / "diffusion_models"
    assert path.name.startswith("digits_wan_int8_row_")
    assert f"{path.stat().st_size / 1e6:.3g} MB" in panel["words"]
    site.wait("widgetOffers", loader, "unet_name", path.name)
    site.screenshot("saved")
    site.panel_button(save, "Add loader")
    site.wait("hasNodes", 4)
    (added,) = set(site.call("nodesOf", "UNETLoader")) - {loader}
    site.wait("widgetIs", added, "unet_name", path.name)
    assert site.call("widgetValue", loader, "unet_name") == "digits_wan.safetensors", "the source must stay"
    site.screenshot("loader")


def test_path_of_saved_file_is_copied(site: Site, chain: tuple[int, int, int]) -> None:
    _, _, save = chain
    site.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    site.set(save, filename_prefix="diffusion_models/%date:yyyy%_%Load Diffusion Model.unet_name%")
    site.press("Run")
    (path,) = site.watch_until(save, "done")[-1]["files"]
    site.panel_button(save, "Copy path")
    script = "(path) => navigator.clipboard.readText().then((words) => words === path)"
    site.page.wait_for_function(script, arg=path)
    assert "digits_wan.safetensors" in Path(path).name and "%" not in path


def test_empty_name_stops_before_anything_runs(site: Site, chain: tuple[int, int, int]) -> None:
    _, quantize, save = chain
    site.set(save, filename_prefix="  ")
    site.press("Run")
    site.watch(save, lambda panel: "The name of the file is empty" in panel["words"])
    site.page.get_by_text("rejected the value").first.wait_for()
    assert site.read_panel(quantize)["phase"] == "idle"
