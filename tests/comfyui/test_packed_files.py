"""Files of 4 and 6 bits in ComfyUI's own loaders: sampled, saved, equal to ComfyUI's, and refused if unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import InputStatistics, Recipe, quantize_file, quantize_tensor
from calibrated_rounding.quant.formats import FORMATS, GroupedFormat
from calibrated_rounding.tools.comfyui import Host, HostError, example_model
from safetensors.torch import load_file

PACKED = [name for name, fmt in FORMATS.items() if isinstance(fmt, GroupedFormat)]
EVERY_FORMAT = pytest.mark.parametrize("fmt", PACKED)

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "w6a8": ("AsymW4A8Int8Layout", {"bits": 6}),
    "w4a8": ("AsymW4A8Int8Layout", {}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}),
}
LEAST_PSNR = {"w6a8": 44, "w4a8": 33, "nvfp4": 29}
"""Least mean PSNR of latents in dB."""

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return {"table": load_file(example_model("digits_conditioning.safetensors"))["conditioning"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    paths = {fmt: folder / f"{fmt}.safetensors" for fmt in PACKED}
    for fmt, path in paths.items():
        quantize_file(example_model("digits_wan.safetensors"), path, Recipe(format=fmt))
    return paths


@pytest.fixture(scope="module")
def sampled(
    host: Host, known_formats: list[str], files: dict[str, Path], inputs: dict[str, Any], tmp_path_factory: Any
) -> dict[str, Any]:
    paths = {fmt: files[fmt] for fmt in PACKED if fmt in known_formats}
    paths |= {"float": example_model("digits_wan.safetensors")}
    saved = tmp_path_factory.mktemp("saved")
    function = "tests.comfyui.programs.load_files:sample_files_with_pack"
    return host.call(function, paths=paths, saved=saved, **inputs) | {"saved": saved}


@EVERY_FORMAT
def test_stock_loader_samples_the_file(sampled: dict[str, Any], fmt: str) -> None:
    result, reference = sampled[fmt], sampled["float"]["latents"]
    assert result["warnings"] == []
    assert {layer["layout"] for layer in result["layers"].values()} == {LAYOUTS[fmt][0]}
    error = (result["latents"] - reference).square().flatten(1).mean(1).sqrt()
    assert float(20 * torch.log10((reference.max() - reference.min()) / error).mean()) > LEAST_PSNR[fmt]


@EVERY_FORMAT
def test_model_save_writes_the_same_tensors(sampled: dict[str, Any], files: dict[str, Path], fmt: str) -> None:
    ours = load_file(files[fmt])
    (path,) = Path(sampled["saved"]).glob(f"{fmt}_0*.safetensors")
    theirs = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in load_file(path).items()}
    assert theirs.keys() == ours.keys()
    for key in ours:
        if not key.endswith("comfy_quant") and ours[key].dtype.itemsize in (1, 4):
            assert torch.equal(bytes_of(theirs[key]), bytes_of(ours[key])), key


@EVERY_FORMAT
def test_nearest_is_what_comfyui_quantizes_to(host: Host, fmt: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 512, generator=generator) * torch.logspace(-3, -1, 96)[:, None]
    weight[::7, ::31] *= 20
    theirs = host.call("tests.comfyui.programs.load_files:quantize_weight", weight=weight, formats={fmt: LAYOUTS[fmt]})[
        fmt
    ]
    ours, _ = quantize_tensor(weight, Recipe(format=fmt, profile="generic"))
    del ours["comfy_quant"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(bytes_of(ours[key]), bytes_of(theirs[key])) for key in ours)


@pytest.mark.parametrize("method", ["off", "absmax"])
def test_nvfp4_layer_multiplies_inputs_as_judged(
    host: Host, inputs: dict[str, Any], tmp_path: Path, method: str
) -> None:
    """Inputs and weights in 4 bits, as cards with NVFP4 units compute them; with a static input scale and without."""
    layer, fmt = "blocks.0.ffn.2", FORMATS["nvfp4"]
    rows = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 8, 64)[:, None]
    path, known = tmp_path / "nvfp4.safetensors", {layer: InputStatistics(absmax=float(rows.abs().max()) / 2)}
    quantize_file(
        example_model("digits_wan.safetensors"), path, Recipe(format="nvfp4", input_scale=method), statistics=known
    )
    function = "tests.comfyui.programs.load_files:run_layer_with_nvfp4_units"
    result = host.call(function, path=path, layer=layer, rows=rows, **inputs)
    assert result["warnings"] == []
    tensors = {name.removeprefix(f"{layer}."): t for name, t in load_file(path).items() if name.startswith(f"{layer}.")}
    scale = float(tensors["input_scale"]) if method != "off" else None
    assert result["input_scale"] == scale
    expected = fmt.round_inputs(rows, scale) @ fmt.read(tensors).T + tensors["bias"].float()
    torch.testing.assert_close(result["outputs"].float(), expected, rtol=0.02, atol=0.02 * float(expected.std()))
    assert bool(result["latents"].isfinite().all())


@EVERY_FORMAT
def test_stock_formats_load_without_the_pack(
    host: Host, files: dict[str, Path], inputs: dict[str, Any], tmp_path: Path, fmt: str
) -> None:
    function = "tests.comfyui.programs.load_files:sample_files"

    def load() -> Any:
        return host.call(function, paths={fmt: files[fmt]}, saved=tmp_path, **inputs)[fmt]

    if fmt in host.call("tests.comfyui.programs.known_formats:list_formats_without_pack"):
        assert load()["warnings"] == []
        return
    with pytest.raises(HostError, match=f"KeyError: '{FORMATS[fmt].comfyui_name}'"):
        load()


@pytest.mark.parametrize("name", PACKED)
def test_formats_that_comfyui_lacks_are_refused_in_one_sentence(
    host: Host, known_formats: list[str], name: str
) -> None:
    if name in known_formats:
        pytest.skip(f"this ComfyUI knows {name}")
    source = example_model("digits_wan.safetensors")
    error = host.call("tests.comfyui.programs.known_formats:refuse_format", source=source, fmt=name)
    assert error.startswith(f"This ComfyUI does not know {name}, so no model can be built with it here; it needs ")
    assert FORMATS[name].needs in error and "\n" not in error


def test_auto_leaves_out_what_cannot_run_here(host: Host, known_formats: list[str]) -> None:
    """A CPU multiplies in no 4-bit floats, and ComfyUI 0.29 does not know w6a8."""
    source = example_model("digits_wan.safetensors")
    result = host.call(
        "tests.comfyui.programs.known_formats:choose_formats", source=source, formats=["w6a8", "nvfp4", "int8_convrot"]
    )
    assert "Left out of auto: nvfp4. The device does not multiply" in result["text"]
    assert ("Left out of auto: w6a8. This ComfyUI" in result["text"]) == ("w6a8" not in known_formats)
    assert set(result["formats"]) <= {"int8_convrot", *({"w6a8"} & set(known_formats))}


@pytest.fixture(scope="module")
def converted(host: Host, known_formats: list[str], inputs: dict[str, Any]) -> dict[str, Any]:
    source, formats = example_model("digits_wan.safetensors"), [f for f in ("w6a8", "w4a8") if f in known_formats]
    function = "tests.comfyui.programs.known_formats:convert_int8"
    return host.call(function, source=source, formats=formats, **inputs)


@pytest.mark.parametrize("fmt", ["w6a8", "w4a8"])
def test_int8_convrot_models_and_files_convert(converted: dict[str, Any], fmt: str) -> None:
    result = converted["formats"][fmt]
    assert result["formats"] == [fmt]
    assert "The source holds INT8 weights" in result["text"]
    assert result["file_equal"], "by Quantize File"
    assert result["error"] < 1.5 * result["float_error"]


def test_int8_convrot_to_other_formats_is_refused(converted: dict[str, Any]) -> None:
    assert "already quantized" in converted["refused"] or "dequantize" in converted["refused"]


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
