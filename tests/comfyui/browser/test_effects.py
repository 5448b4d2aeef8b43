"""The effect of each layer on the picture, from measured sensitivities of the shipped model, in the report."""

from __future__ import annotations

import re

import pytest
from calibrated_rounding.tools.comfyui.browser import Site

SHARE = re.compile(r"(< 0\.1|\d+\.\d)%")


def test_effects_are_shares_of_the_whole(site: Site) -> None:
    kinds = ("UNETLoader", *["CalibratedRoundingLoadClassConditioning"] * 2, "EmptyHunyuanLatentVideo")
    loader, digit, nothing, latent = (site.call("createNode", kind, [0, 200 * i]) for i, kind in enumerate(kinds))
    kinds = ("CalibratedRoundingCalibrateModel", "CalibratedRoundingQuantizeModel", "PreviewAny")
    calibrate, quantize, shown = (site.call("createNode", kind, [400 * i, 0]) for i, kind in enumerate(kinds, 1))
    site.set(loader, unet_name="digits_wan.safetensors")
    for node, number in ((digit, 3), (nothing, 10)):
        site.set(node, table="digits_conditioning.safetensors", class_index=number)
    site.set(latent, width=64, height=64, length=1, batch_size=2)
    site.set(calibrate, runs=1, steps=4, probe_steps=2)
    site.set(quantize, format="int8_convrot", rounding="calibrated")
    for target in (calibrate, quantize):
        site.connect(loader, "MODEL", target, "model")
    site.connect(digit, "CONDITIONING", calibrate, "positive")
    site.connect(nothing, "CONDITIONING", calibrate, "negative")
    site.connect(latent, "LATENT", calibrate, "latent_image")
    site.connect(calibrate, "calibration", quantize, "calibration")
    site.connect(quantize, "report", shown, "source")
    site.press("Run")
    site.watch(quantize, lambda panel: panel["phase"] == "done", seconds=400)
    dialog = site.open_report(quantize)
    dialog.get_by_role("button", name="Effect on the picture").click()
    site.screenshot("sorted")
    cells = dialog.locator(".calro-layers td.calro-effect").all_inner_texts()
    assert len(cells) == dialog.locator(".calro-layers tbody tr").count()
    assert all(SHARE.fullmatch(cell) for cell in cells), cells
    shares = [0.0 if cell.startswith("<") else float(cell.removesuffix("%")) for cell in cells]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=1)
