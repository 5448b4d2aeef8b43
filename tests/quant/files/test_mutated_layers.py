"""Quantized layers with random damage: every reader answers, or says in one sentence why it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated_rounding.quant import QuantError, Recipe, quantize_state_dict
from calibrated_rounding.quant.reports.comparison import compare_files
from calibrated_rounding.quant.reports.inspection import inspect_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from .quantized_layers import FLOAT, Tensors, byte_tensor, every_layer, json_tensor

LAYERS = every_layer()

LARGEST = 4 * 2**20
"""Bytes of any one tensor while the layers, of at most 128 x 256 weights, are read."""

NUMBERS = st.sampled_from([0, 1, -1, 3, 16, 16.0, 32, 64, 128, 256, 2**28, 2**31, 2**63, 10**400, 1e300, 0.5])
VALUES: st.SearchStrategy[Any] = st.one_of(
    NUMBERS,
    st.none() | st.booleans() | st.text(max_size=3) | st.sampled_from(list(LAYERS)),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.sampled_from(["convrot", "convrot_groupsize", "group_size", "bits"]), NUMBERS, max_size=2),
)
FIELDS = st.sampled_from(
    ["format", "convrot", "convrot_groupsize", "group_size", "orig_shape", "num_experts", "params", "per_row", "bits"]
)
PARTS = st.sampled_from(
    ["weight", "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_s_rel", "input_scale", "scale", "bias"]
)
SHAPES = st.sampled_from(
    [(), (0,), (1,), (7,), (128,), (128, 1), (1, 2), (4, 8), (128, 256), (256, 128), (0, 256), (2, 128, 256)]
)
DTYPES = st.sampled_from(
    [
        *(torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64),
    ]
)
SPECIAL = st.sampled_from([0.0, -1.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan")])
BYTES = st.binary(max_size=40) | st.sampled_from([b"[" * 2000, b'{"a":' * 500, b'{"format": NaN}', b"\xff\xfe{\x00"])


def stated(tensors: Tensors) -> dict[str, Any]:
    """The fields of the layer's marker; none where it has none that can be read."""
    try:
        fields = json.loads(bytes(tensors["l.comfy_quant"].tolist()))
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def change_marker(tensors: Tensors, draw: Callable[..., Any]) -> None:
    tensors["l.comfy_quant"] = json_tensor({**stated(tensors), draw(FIELDS): draw(VALUES)})


def break_marker(tensors: Tensors, draw: Callable[..., Any]) -> None:
    tensors["l.comfy_quant"] = byte_tensor(draw(BYTES))


def replace_tensor(tensors: Tensors, draw: Callable[..., Any]) -> None:
    tensors[f"l.{draw(PARTS)}"] = torch.ones(draw(SHAPES)).to(draw(DTYPES))


def drop_tensor(tensors: Tensors, draw: Callable[..., Any]) -> None:
    del tensors[draw(st.sampled_from(sorted(tensors)))]


def change_value(tensors: Tensors, draw: Callable[..., Any]) -> None:
    name = draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name].clone().contiguous()
    if tensor.numel():
        place = draw(st.integers(0, tensor.numel() - 1))
        flat = tensor.reshape(-1)
        if tensor.dtype.itemsize == 1:
            flat.view(torch.uint8)[place] = draw(st.integers(0, 255))
        elif tensor.dtype.is_floating_point:
            flat[place] = draw(SPECIAL)
    tensors[name] = tensor


CHANGES = st.sampled_from([change_marker, break_marker, replace_tensor, drop_tensor, change_value])


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    save_file({"l.weight": FLOAT, "other.weight": FLOAT.clone()}, folder / "f.safetensors")
    return folder


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_layers_end_in_a_sentence(name: str, folder: Path, data: st.DataObject) -> None:
    tensors = dict(LAYERS[name])
    for change in data.draw(st.lists(CHANGES, min_size=1, max_size=3)):
        if tensors:
            change(tensors, data.draw)
    path = folder / "m.safetensors"
    save_file({"other.weight": FLOAT, **tensors}, path, metadata=data.draw(headers(tensors)))
    with LargestTensor() as largest:
        inspect_file(path).to_dict()
        for action in (
            lambda: json.dumps(compare_files(folder / "f.safetensors", path).to_dict(), allow_nan=False),
            lambda: quantize_state_dict(tensors, Recipe(format="int8_row", dequantize=True, profile="generic")),
        ):
            try:
                action()
            except QuantError as error:
                assert "\n" not in str(error)
    assert largest.nbytes <= LARGEST


def headers(tensors: Tensors) -> st.SearchStrategy[dict[str, str] | None]:
    """Metadata: mostly none, else the marker as it is, another one, or something that is none."""
    marker = json.dumps({"layers": {"l": stated(tensors)}})
    entries = st.sampled_from([marker, '{"layers": {"m": {}}}', "[" * 2000, '{"layers": 1}'])
    return st.none() | st.none() | entries.map(lambda text: {"_quantization_metadata": text})
