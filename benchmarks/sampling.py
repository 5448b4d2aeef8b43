"""How close quantized models sample to the float model, in a real ComfyUI on the CPU, at seeds that calibration did not
see.

    python benchmarks/sampling.py [--json FILE] [--seeds N] [--peer PATH]

The shipped digits model is quantized in each format and with each rounding method, and by the peer, convert-to-quant
(PyPI; ``ctq`` on the PATH, or --peer), with its own command line: with --simple, and with its learned rounding at its
defaults; both quantize the same layers. Every file is loaded by ComfyUI's own UNETLoader (found as the tests find it:
COMFYUI_PATH, the folder that the pack is installed in, or ~/ComfyUI) and sampled at fixed seeds: all ten classes, 20
steps of euler, scheduler simple, cfg 3. "calibrated" was recorded by the pack's own node in two runs at other seeds;
"chosen" has its layers chosen by measured error and sensitivity and not by the profile, in no more bytes.

PSNR is that of each latent, its peak the range of the float model's latents, and the table has the mean over seeds and
classes; the relative error is ||quantized - float|| / ||float|| over all of them, and its ratio that to nearest
rounding of the same format. Without a ComfyUI every value is empty, without the peer its own are.
"""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import _peer
from _process import race
from _table import Row, arguments, emit
from calibrated_rounding.nodes.compare.latents import Closeness, measure_closeness, value_range
from calibrated_rounding.quant import Recipe, SvdSettings, plan_file, quantize_file
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.formats import table as known
from calibrated_rounding.quant.recipe import AUTO
from calibrated_rounding.tests.comfyui.harness import PACK, Host, HostMissing, example_model, find_host
from safetensors.torch import load_file
from torch import Tensor

WANTED = ("float8_e4m3fn", "float8_e5m2", "int8_tensor", "int8_row", "int8_convrot", "int8_blockwise", "mxfp8")
FORMATS = tuple(fmt for fmt in WANTED if fmt in known.FORMATS)
ROUNDINGS = {
    "nearest": {"rounding": "nearest"},
    "svd": {"rounding": "svd", "svd": SvdSettings()},
    "svd, feedback": {"rounding": "svd", "svd": SvdSettings(optimizer="feedback")},
    "calibrated": {"rounding": "calibrated"},
}
CHOSEN = "calibrated, chosen"
PEERS = {"peer, nearest": _peer.NEAREST, "peer, learned": ()}
METHODS = {fmt: (*ROUNDINGS, CHOSEN, *(PEERS if fmt in _peer.FORMATS else ())) for fmt in FORMATS}

GAIN = {"float8_e4m3fn": 8.0, "float8_e5m2": 8.0, "int8_convrot": 3.0}
"""Decibels that calibrated is to be above nearest."""

CALIBRATE = """
import folder_paths, pack_nodes
pack = pack_nodes.load(root)
folder_paths.set_output_directory(folder)
model, _ = inside.load_unet(source)
calibration = pack_nodes.call(
    pack.CalibrateModel, model=model, positive=[[table[:10], {}]], negative=[[table[10:].expand(10, -1, -1), {}]],
    latent_image={"samples": torch.zeros(10, 16, 1, 8, 8)}, seed=1000, runs=2, steps=20, cfg=3.0, sampler_name="euler",
    scheduler="simple", rows=2048, budget_gib=2.0, probe_steps=4,
).args[0]
outputs["path"] = pack_nodes.call(pack.SaveCalibration, calibration=calibration, name="digits").args[0]
"""

VERSIONS = """
from importlib.metadata import version
outputs |= {package: version(package) for package in ("torch", "comfy-kitchen")}
"""

SAMPLE = """
import pack_nodes
pack_nodes.load(root)
for name, path in paths.items():
    model, _ = inside.load_unet(path)
    outputs[name] = torch.stack([inside.sample(model, table, seed) for seed in range(seeds)])
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="samples of each class (default 8)")
    _peer.add_argument(parser)
    options = parser.parse_args()
    title = "Sampled latents against the float model's"
    try:
        host = find_host()
    except HostMissing as reason:
        print(f"Nothing was measured: {reason}.")
        emit(rows_of({}), options.json, title)
        return
    found = rows_of(sampled(host, options.seeds, options.peer))
    emit(found, options.json, title, extra_versions=host_versions(host) | _peer.versions(options.peer))


def host_versions(host: Host) -> dict[str, str]:
    """Of what samples, which need not be what quantizes."""
    return {"ComfyUI": host.version, **host.run(VERSIONS)}


def sampled(host: Host, seeds: int, peer: str | None) -> dict[str, Tensor]:
    """Latents ``[seeds, 10, 16, 1, 8, 8]`` of the float model ("float") and of every file that was made."""
    source = example_model("digits_wan.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        table = load_file(example_model("digits_conditioning.safetensors"))["conditioning"]
        recorded = host.run(CALIBRATE, root=str(PACK), folder=folder, source=str(source), table=table)
        made = quantized(source, Path(folder), Calibration.load(recorded["path"]))
        if peer is not None:
            made |= quantized_by_peer(source, Path(folder), peer)
        paths = {"float": str(source), **{case: str(path) for case, path in made.items()}}
        return host.run(SAMPLE, timeout=3600, root=str(PACK), paths=paths, table=table, seeds=seeds)


def quantized(source: Path, folder: Path, calibration: Calibration) -> dict[str, Path]:
    """A file of every format and method of the pack's, by case."""
    recipes = {case_of(f, method): Recipe(format=f, **how) for f in FORMATS for method, how in ROUNDINGS.items()}
    recipes |= {case_of(f, CHOSEN): chosen_layers(source, f) for f in FORMATS}
    paths = {case: target_of(folder, case) for case in recipes}
    for case, recipe in recipes.items():
        quantize_file(source, paths[case], recipe, statistics=calibration)
    return paths


def chosen_layers(source: Path, fmt: str) -> Recipe:
    """The format for layers chosen by measured error, not by the profile, in as many bytes as the profile's take."""
    plan = plan_file(source, Recipe(format=fmt))
    floats = [part.source for part in (*plan.layers.values(), *plan.kept.values())]
    share = plan.nbytes / sum(spec.nbytes for spec in floats)
    return Recipe(format=AUTO, formats=(fmt,), target_share=share, rounding="calibrated")


def quantized_by_peer(source: Path, folder: Path, peer: str) -> dict[str, Path]:
    """The files that the peer makes with the same layers quantized, by case; it says why where it makes none."""
    commands, paths = {}, {}
    for fmt in filter(_peer.FORMATS.__contains__, FORMATS):
        kept = ["--exclude-layers", kept_layers(source, fmt)]
        for method, options in PEERS.items():
            case = case_of(fmt, method)
            paths[case] = target_of(folder, case)
            commands[case] = _peer.command(peer, source, paths[case], fmt, [*kept, *options])
    race(commands, 1)
    # The peer may end without an error where it has written nothing.
    return {case: path for case, path in paths.items() if path.exists()}


def kept_layers(source: Path, fmt: str) -> str:
    """A regular expression for the weights that the pack leaves as they are."""
    plan = plan_file(source, Recipe(format=fmt))
    return f"^({'|'.join(re.escape(name) for name in plan.kept if name.endswith('.weight'))})$"


def case_of(fmt: str, method: str) -> str:
    return f"{fmt}, {method}"


def target_of(folder: Path, case: str) -> Path:
    return folder / f"{case.replace(', ', '_').replace(' ', '_')}.safetensors"


def rows_of(latents: Mapping[str, Tensor]) -> list[Row]:
    """The figures of every format and method; values are None where there are no latents."""
    return [row for fmt in FORMATS for row in format_rows(fmt, latents)]


def format_rows(fmt: str, latents: Mapping[str, Tensor]) -> list[Row]:
    cases = {method: case_of(fmt, method) for method in METHODS[fmt]}
    found = {method: figures(latents[c], latents["float"]) for method, c in cases.items() if c in latents}
    nearest, rows = found.get("nearest"), []
    for method, case in cases.items():
        here = found.get(method)
        both = here is not None and nearest is not None
        target = GAIN.get(fmt) if method == "calibrated" else None
        gain = here.psnr_db - nearest.psnr_db if both else None
        reached = None if gain is None or target is None else gain >= target
        rows += [
            Row(case, "mean PSNR of latents", here and here.psnr_db, "dB"),
            Row(case, "PSNR above nearest", gain, "dB", target, reached),
            Row(case, "relative error of latents", here and here.relative_error, "ratio"),
            Row(case, "error / nearest", here.relative_error / nearest.relative_error if both else None, "ratio"),
        ]
    return rows


def figures(made: Tensor, wanted: Tensor) -> Closeness:
    """Of latents ``[seeds, classes, ...]``: the mean of each latent's PSNR; cosine and relative error of all."""
    peak = value_range(wanted)
    pairs = zip(made.flatten(0, 1), wanted.flatten(0, 1), strict=True)
    psnr = statistics.mean(measure_closeness(latent, other, peak).psnr_db for latent, other in pairs)
    whole = measure_closeness(made, wanted, peak)
    return Closeness(psnr, whole.cosine, whole.relative_error)


if __name__ == "__main__":
    main()
