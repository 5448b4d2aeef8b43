"""What a marker says, and that nothing it says is lost or ignored."""

from __future__ import annotations

import json

import pytest
import torch
from calibrated_rounding.quant.bounded_json import DEEPEST, parse_json
from calibrated_rounding.quant.errors import CheckpointError, MarkerError
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.quant.formats.marker import HEADER_KEY, LARGEST, Marker, from_header, to_header
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(list(Marker.__dataclass_fields__)) | st.text(max_size=8)


def byte_tensor(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


WRITTEN = {
    "float8_e4m3fn": '{"format": "float8_e4m3fn"}',
    "int8_row": '{"format": "int8_tensorwise"}',
    "mxfp8": '{"format": "mxfp8", "orig_shape": [40, 48]}',
    "int8_blockwise_64": '{"format": "int8_blockwise", "group_size": 64}',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_bytes_stay(name: str) -> None:
    marker = FORMATS[name].make_marker((40, 48), None, full_precision=False)
    assert bytes(marker.to_tensor().tolist()).decode() == WRITTEN[name]


def test_written_bytes_of_rotation_and_full_precision_stay() -> None:
    marker = FORMATS["int8_convrot"].make_marker((32, 64), 64, full_precision=True)
    assert bytes(marker.to_tensor().tolist()) == (
        b'{"convrot": true, "convrot_groupsize": 64, "format": "int8_tensorwise", "full_precision_matrix_mult": true}'
    )
    assert to_header({"l": marker}) == (
        '{"format_version": "1.0", "layers": {"l": {"convrot": true, "convrot_groupsize": 64, '
        '"format": "int8_tensorwise", "full_precision_matrix_mult": true}}}'
    )


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_json_object_survives(stated: dict[str, object]) -> None:
    marker = Marker.from_json(stated)
    assert Marker.from_json(marker.to_json()) == marker
    assert Marker.from_tensor("l", marker.to_tensor()) == marker
    assert from_header({HEADER_KEY: to_header({"l": marker})}) == {"l": marker}
    if "params" not in stated:
        assert marker.to_json() == stated


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("convrot_groupsize", 16.0),
        ("convrot_groupsize", "256"),
        ("convrot_groupsize", True),
        ("group_size", 0),
        ("group_size", -16),
        ("group_size", 10**400),
        ("convrot", 1),
        ("full_precision_matrix_mult", "no"),
        ("orig_shape", [64, 1.5]),
        ("format", None),
        ("quarot", True),
    ],
)
def test_unknown_fields_are_kept(field: str, value: object) -> None:
    assert Marker.from_json({field: value}).unknown == {field: value}


def test_remarks_of_other_programs_are_known() -> None:
    stated = {"format": "int8_tensorwise", "orig_dtype": "torch.bfloat16", "per_row": True}
    marker = Marker.from_json(stated)
    assert marker.unknown == {} and marker.to_json() == stated


def test_nested_fields_give_way_to_the_top() -> None:
    nested = {"convrot": True, "convrot_groupsize": 64}
    assert Marker.from_json({"params": nested}).rotation_group == 64
    assert Marker.from_json({"params": nested, "convrot_groupsize": 16}).rotation_group == 16
    assert Marker.from_json({"params": nested, "convrot": False}).rotation_group is None


@pytest.mark.parametrize("nested", [{"format": "mxfp8"}, {"bits": 4}, [], 7])
def test_nested_fields_that_comfyui_ignores_are_unknown(nested: object) -> None:
    assert Marker.from_json({"params": nested}).unknown == {"params": nested}


def test_rotation_group_defaults_as_in_comfyui() -> None:
    assert Marker(convrot=True).rotation_group == 256
    assert Marker(convrot_groupsize=64).rotation_group is None


def test_differences_name_fields_that_loading_depends_on() -> None:
    marker = Marker.from_json({"format": "mxfp8", "convrot": False, "per_row": True, "orig_shape": [2, 2]})
    assert list(marker.differences(Marker(format="mxfp8"))) == []
    assert list(marker.differences(Marker(format="nvfp4"))) == [("format", "mxfp8", "nvfp4")]
    assert [name for name, *_ in marker.differences(Marker.from_json({"format": "mxfp8", "a": 1}))] == ["unknown"]


MALFORMED = {
    "not a tensor of bytes": torch.ones(4),
    "a number": torch.tensor(8 * 10**9),
    "two dimensions": torch.zeros(2, 2, dtype=torch.uint8),
    "too large": torch.zeros(LARGEST + 1, dtype=torch.uint8),
    "empty": byte_tensor(b""),
    "not JSON": byte_tensor(b'{"format"'),
    "not text": byte_tensor(b"\xff\xfe\xff"),
    "a list": byte_tensor(b"[]"),
    "NaN": byte_tensor(b'{"format": NaN}'),
    "an infinity": byte_tensor(b'{"group_size": 1e999}'),
    "endless digits": byte_tensor(b'{"group_size": ' + b"9" * 5000 + b"}"),
    "nested too deep": byte_tensor(b'{"a": ' + b"[" * 30000 + b"]" * 30000 + b"}"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_markers_name_the_layer(case: str) -> None:
    with pytest.raises(MarkerError, match=r"'blocks\.0'"):
        Marker.from_tensor("blocks.0", MALFORMED[case])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"layers": 1}', '{"layers": {"l": 1}}', '{"layers": {"l": []}}', "[" * 100_000]
)
def test_malformed_header_entries_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=HEADER_KEY):
        from_header({HEADER_KEY: text})


def test_json_is_bounded_in_depth() -> None:
    for brackets in ("[]", ('{"a":', "}")):
        start, end = brackets
        fits, deep = (start * depth + ("1" if end == "}" else "") + end * depth for depth in (DEEPEST, DEEPEST + 2))
        assert json.loads(fits) == parse_json(fits)
        with pytest.raises(ValueError, match="deep"):
            parse_json(deep)
