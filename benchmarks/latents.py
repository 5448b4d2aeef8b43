"""How close quantized models sample to the float model, in a real ComfyUI on the CPU.

    python benchmarks/latents.py [--json FILE] [--seeds N]

The shipped digits model is quantized in each format and with each rounding method, loaded by ComfyUI's own UNETLoader
(found as the tests find it: COMFYUI_PATH, the folder that the pack is installed in, or ~/ComfyUI) and sampled at fixed
seeds: all ten classes, 20 steps of euler, scheduler simple, cfg 3. PSNR is that of each latent, its peak the range of
the float model's latents, and the table has the mean over seeds and classes; the calibration of "calibrated" was
recorded by the pack's own node in two runs at other seeds; the relative error is
||quantized - float|| / ||float|| over all of them. Without a ComfyUI every value is empty.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _table import Row, arguments, emit
from calibrated_rounding.quant import Recipe, SvdSettings, quantize_file
from calibrated_rounding.quant.calibration import Calibration
from calibrated_rounding.tests.comfyui.harness import PACK, Host, HostMissing, example_model, find_host
from safetensors.torch import load_file
from torch import Tensor

FORMATS = ("int8_tensor", "int8_row", "int8_convrot", "float8_e4m3fn", "float8_e5m2", "mxfp8")
ROUNDINGS = {
    "nearest": {"rounding": "nearest"},
    "svd": {"rounding": "svd", "svd": SvdSettings()},
    "svd feedback": {"rounding": "svd", "svd": SvdSettings(optimizer="feedback")},
    "calibrated": {"rounding": "calibrated"},
}
RECIPES = {f"{fmt} {title}": Recipe(format=fmt, **settings) for fmt in FORMATS for title, settings in ROUNDINGS.items()}

CALIBRATE = """
import folder_paths, pack_nodes
pack = pack_nodes.load(root)
folder_paths.set_output_directory(folder)
model, _ = inside.load_unet(source)
calibration = pack_nodes.call(
    pack.CalibrateModel, model=model, positive=[[table[:10], {}]], negative=[[table[10:].expand(10, -1, -1), {}]],
    latent_image={"samples": torch.zeros(10, 16, 1, 8, 8)}, seed=1000, runs=2, steps=20, cfg=3.0, sampler_name="euler",
    scheduler="simple", rows=2048, budget_gib=2.0,
).args[0]
outputs["path"] = pack_nodes.call(pack.SaveCalibration, calibration=calibration, name="digits").args[0]
"""

SAMPLE = """
for name, path in paths.items():
    model, _ = inside.load_unet(path)
    outputs[name] = torch.stack([inside.sample(model, table, seed) for seed in range(seeds)])
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="samples of each class (default 8)")
    options = parser.parse_args()
    try:
        host = find_host()
    except HostMissing as reason:
        print(f"Nothing was measured: {reason}.")
        emit(rows_of({}), options.json, "PSNR of sampled latents")
        return
    latents = sampled(host, options.seeds)
    emit(rows_of(latents), options.json, "PSNR of sampled latents", extra_versions={"ComfyUI": host.version})


def sampled(host: Host, seeds: int) -> dict[str, Tensor]:
    """Latents ``[seeds, 10, 16, 1, 8, 8]`` of the float model ("float") and of every recipe."""
    source = example_model("digits_wan.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.safetensors") for name in RECIPES}
        table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
        recorded = host.run(CALIBRATE, root=str(PACK), folder=folder, source=str(source), table=table)
        calibration = Calibration.load(recorded["path"])
        for name, recipe in RECIPES.items():
            quantize_file(source, paths[name], recipe, statistics=calibration)
        every = {"float": str(source), **paths}
        return host.run(SAMPLE, timeout=1800, paths=every, table=table, seeds=seeds)


def rows_of(latents: dict[str, Tensor]) -> list[Row]:
    """Two rows for each recipe; their values are None where there are no latents."""
    rows = []
    for name in RECIPES:
        noise, relative = figures(latents[name], latents["float"]) if name in latents else (None, None)
        rows.append(Row(name, "mean PSNR of latents", noise, "dB"))
        rows.append(Row(name, "relative error of latents", relative, "ratio"))
    return rows


def figures(made: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Mean PSNR in decibels and relative error of latents ``[seeds, classes, ...]``."""
    error = made - wanted
    peak = wanted.max() - wanted.min()
    noise = error.square().flatten(2).mean(2).sqrt()
    return float(20 * (peak / noise).log10().mean()), float(error.norm() / wanted.norm())


if __name__ == "__main__":
    main()
