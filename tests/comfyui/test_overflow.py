"""Values in the graph that a dtype or a format cannot hold: one sentence names the tensor, and nothing is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.tools.comfyui import Host, example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LAYER = "blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def results(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The example with a huge bias, a huge row in a layer and neither, in float32."""
    folder = tmp_path_factory.mktemp("overflow")
    with safe_open(example_model("digits_wan.safetensors"), "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.float() for name, tensor in load_file(example_model("digits_wan.safetensors")).items()}
    weight = tensors[f"{LAYER}.weight"].clone()
    weight[3] = 3e38
    bias = torch.full_like(tensors[f"{LAYER}.bias"], 1e5)
    changes = {"plain": {}, "bias": {f"{LAYER}.bias": bias}, "row": {f"{LAYER}.weight": weight}}
    paths = {name: folder / f"{name}.safetensors" for name in changes}
    for name, change in changes.items():
        save_file(tensors | change, paths[name], metadata)
    return host.call(
        "tests.comfyui.programs.overflow:quantize_and_save",
        paths=paths,
        output=folder / "output",
        fmt="int8_convrot",
        keep_dtype="float16",
    )


def test_ordinary_values_are_saved(results: dict[str, dict[str, Any]]) -> None:
    assert results["plain"]["message"] is None
    (path,) = results["plain"]["written"]
    assert load_file(Path(path))[f"{LAYER}.bias"].dtype == torch.float16


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("bias", f"The tensor '{LAYER}.bias' holds values of up to 1e+05, more than float16 can hold"),
        ("row", f"Layer '{LAYER}' holds weights of up to 3e+38, which overflow float32 in the format int8_convrot"),
    ],
)
def test_overflow_is_refused_by_name(results: dict[str, dict[str, Any]], case: str, text: str) -> None:
    assert results[case]["message"].startswith(text)
    assert results[case]["written"] == []
