"""What a small text encoder's header states: taken where its tensors agree, else refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.nodes.examples.encoder_header import read_encoder_options
from calibrated_rounding.quant import QuantError, Recipe, quantize_file
from calibrated_rounding.tools.comfyui import example_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

SHIPPED = "digits_gemma2.safetensors"
Write = Callable[..., Path]


def config() -> dict[str, Any]:
    with safe_open(example_model(SHIPPED), "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["config"])
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the shipped encoder with another text in the header's field, and with changed tensors (None: left out)."""

    def written(field: str | None, **changed: Tensor | None) -> Path:
        path = tmp_path / "encoder.safetensors"
        tensors = {**load_file(example_model(SHIPPED)), **{key.replace("__", "."): t for key, t in changed.items()}}
        kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
        save_file(kept, path, {} if field is None else {"config": field})
        return path

    return written


def test_shipped_encoder_keeps_its_sizes() -> None:
    found = read_encoder_options(example_model(SHIPPED))
    assert found.model == {"gemma2_2b_model_config": config()["gemma2_2b"]}
    assert found.tokenizer == {"gemma2_2b_min_padding": config()["min_padding"]}


@pytest.mark.parametrize("fmt", ["int8_row", "int8_convrot", "float8_e4m3fn", "mxfp8"])
def test_quantized_file_keeps_stated_sizes(tmp_path: Path, fmt: str) -> None:
    target = tmp_path / "quantized.safetensors"
    quantize_file(example_model(SHIPPED), target, Recipe(format=fmt))
    assert read_encoder_options(target) == read_encoder_options(example_model(SHIPPED))


def test_padding_may_be_left_out(write: Write) -> None:
    assert read_encoder_options(write(json.dumps({"gemma2_2b": config()["gemma2_2b"]}))).tokenizer == {
        "gemma2_2b_min_padding": 0
    }


@pytest.mark.parametrize("padding", [-1, 10**9, 1.5, True, "4", None])
def test_padding_of_another_kind_is_refused(write: Write, padding: Any) -> None:
    assert "states a 'min_padding'" in refusal(write(json.dumps(config() | {"min_padding": padding})))


@pytest.mark.parametrize("field", [None, "{}", '{"transformer": {"text_dim": 64}}'])
def test_file_without_sizes_uses_load_clip(write: Write, field: str | None) -> None:
    assert "'encoder.safetensors' does not state" in refusal(write(field))
    assert refusal(write(field)).endswith("load it with Load CLIP.")


@pytest.mark.parametrize("name", ["digits_wan.safetensors", "digits_vae.safetensors"])
def test_another_model_is_left_to_load_clip(name: str) -> None:
    assert "load it with Load CLIP" in refusal(example_model(name))


@pytest.mark.parametrize("size", [*config()["gemma2_2b"]])
@pytest.mark.parametrize("value", [1, 10**12, "64", None])
def test_sizes_that_are_not_the_tensors_are_refused(write: Write, size: str, value: Any) -> None:
    other = config()
    other["gemma2_2b"][size] = 2 if value == other["gemma2_2b"][size] else value
    assert "states other sizes" in refusal(write(json.dumps(other)))


@pytest.mark.parametrize("sizes", [None, [], 3, {}, {"gemma2_2b": 1}])
def test_sizes_of_another_kind_are_refused(write: Write, sizes: Any) -> None:
    assert "states other sizes" in refusal(write(json.dumps({"gemma2_2b": sizes})))


@pytest.mark.parametrize("field", ["", "{", "[1]", "null"])
def test_a_damaged_field_is_refused(write: Write, field: str) -> None:
    assert "the header's field 'config' is not" in refusal(write(field))


@pytest.mark.parametrize(
    "key", ["spiece_model", "model__embed_tokens__weight", "model__layers__2__mlp__up_proj__weight"]
)
def test_a_missing_tensor_is_named(write: Write, key: str) -> None:
    path = write(json.dumps(config()), **{key: None})
    assert f"has no tensor '{key.replace('__', '.')}'" in refusal(path)


def test_fewer_layers_than_comfyui_encodes_with_are_refused(write: Write) -> None:
    sizes = config()
    sizes["gemma2_2b"]["num_hidden_layers"] = 2
    last = [key for key in load_file(example_model(SHIPPED)) if key.startswith("model.layers.2.")]
    assert "has no tensor 'model.layers.2." in refusal(write(json.dumps(sizes), **dict.fromkeys(last)))


def test_a_tensor_that_is_no_matrix_is_refused(write: Write) -> None:
    path = write(json.dumps(config()), model__layers__0__mlp__gate_proj__weight=torch.zeros(()))
    assert "states other sizes" in refusal(path)


def refusal(path: Path) -> str:
    """What the file is refused with: one sentence, on one line."""
    with pytest.raises(QuantError) as error:
        read_encoder_options(path)
    assert "\n" not in str(error.value)
    return str(error.value)
