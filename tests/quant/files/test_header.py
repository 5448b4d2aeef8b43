from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant.errors import CheckpointError
from calibrated_rounding.quant.files import DTYPES, open_checkpoint, read_header
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

BYTES = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
VALID = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}, {"format": "pt"})


def entry(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2)) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_reads_files_of_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(VALID)
    header = read_header(path)
    assert list(header.tensors) == ["a", "b"]
    assert header.metadata == {"format": "pt"}
    a, b = header.tensors.values()
    assert (a.dtype, a.shape, a.numel, a.nbytes) == (torch.float32, (2, 3), 6, 24)
    assert (b.dtype, b.shape, b.numel, b.nbytes) == (torch.bool, (), 1, 1)
    assert header.data_start + b.end == len(VALID)


def test_tensors_come_in_file_order(raw_file):
    none = {**BYTES, "shape": [0], "data_offsets": [2, 2]}
    header = {"late": {**BYTES, "data_offsets": [2, 4]}, "none": none, "a": BYTES}
    assert list(read_header(raw_file(header, b"1234")).tensors) == ["a", "none", "late"]


def test_a_file_without_tensors_is_valid(raw_file):
    assert read_header(raw_file({}, b"")).tensors == {}


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_have_torch_sizes(name, raw_file):
    size = 3 * DTYPES[name].itemsize
    info = read_header(raw_file(entry(name, [3], [0, size]), bytes(size))).tensors["a"]
    assert (info.dtype, info.nbytes) == (DTYPES[name], size)


@pytest.mark.parametrize(
    ("header", "data", "texts"),
    [
        (b"", b"", ["header"]),
        (b"{" + b" " * 7, b"", ["not valid JSON"]),
        (b"[]", b"", ["not a safetensors file"]),
        (b'{"a": "\xff"}', b"", ["not valid JSON"]),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", ["not valid JSON"]),
        (b'{"\\ud800": 1}', b"", ["not valid JSON"]),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", ["model.safetensors"]),
        (b'{"a": 1, "a": 2}', b"", ["'a' twice"]),
        (b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}', b"12", ["'dtype' twice"]),
        ({"a": 1}, b"", ["'a'", "JSON object"]),
        ({"a": {}}, b"", ["'a'", "data type None"]),
        (entry("F3"), b"12", ["'a'", "'F3'"]),
        (entry(["U8"]), b"12", ["'a'", "data type"]),
        (entry(shape="2"), b"12", ["'a'", "shape"]),
        (entry(shape=[2.0]), b"12", ["'a'", "shape"]),
        (entry(shape=[True, 2]), b"12", ["'a'", "shape"]),
        (entry(shape=[-2]), b"12", ["'a'", "impossible shape"]),
        (entry(shape=[-1, -2]), b"12", ["'a'", "impossible shape"]),
        (entry(shape=[2**63, 0], offsets=[0, 0]), b"", ["'a'", "impossible shape"]),
        (entry(shape=[2**40, 2**40, 0], offsets=[0, 0]), b"", ["'a'", "impossible shape"]),
        (entry(shape=[2**32, 2**32]), b"12", ["'a'", "impossible shape"]),
        (entry(shape=[2] + [1] * 64), b"12", ["'a'", "impossible shape"]),
        (entry(offsets=[0]), b"12", ["'a'", "data_offsets"]),
        (entry(offsets=[0, "2"]), b"12", ["'a'", "data_offsets"]),
        (entry(offsets=[2, 0]), b"12", ["'a'", "data_offsets"]),
        (entry(offsets=[-2, 0]), b"12", ["'a'", "data_offsets"]),
        (entry(offsets=[2**64, 2**64 + 2]), b"12", ["'a'", "data_offsets"]),
        (entry(shape=[3]), b"12", ["'a'", "takes 2 bytes", "needs 3"]),
        (entry("F32", [1]), b"12", ["'a'", "takes 2 bytes", "needs 4"]),
        (entry(offsets=[0, 2]), b"1", ["truncated", "1 byte;"]),
        (entry(offsets=[0, 2]), b"123", ["1 bytes after its last tensor"]),
        (entry(offsets=[1, 3]), b"123", ["1 unused bytes", "'a'"]),
        (entry(offsets=[1000, 1002]), b"12", ["unused", "'a'"]),
        ({"a": BYTES, "b": BYTES}, b"12", ["'b' overlaps"]),
        ({"a": BYTES, "b": {**BYTES, "data_offsets": [1, 3]}}, b"123", ["'b' overlaps"]),
        ({"a": BYTES, "b": {**BYTES, "shape": [0], "data_offsets": [1, 1]}}, b"12", ["'b' overlaps"]),
        ({"a": BYTES, "b": {**BYTES, "data_offsets": [3, 5]}}, b"12345", ["unused", "'b'"]),
        ({"__metadata__": ["x"], "a": BYTES}, b"12", ["__metadata__"]),
        ({"__metadata__": {"k": 1}, "a": BYTES}, b"12", ["'k'"]),
        ({"__metadata__": {"k": None}, "a": BYTES}, b"12", ["'k'"]),
        ({"x\ny" * 500: 1}, b"", ["JSON object"]),
    ],
)
def test_malformed_headers_are_refused(header, data, texts, raw_file, refused):
    path = raw_file(header, data)
    with refused(path, *texts):
        read_header(path)


@pytest.mark.parametrize("end", range(len(VALID)))
def test_truncation_at_every_byte_is_refused(end, tmp_path, refused):
    path = tmp_path / "model.safetensors"
    path.write_bytes(VALID[:end])
    with refused(path, "truncated" if end else "empty"):
        read_header(path)
    with refused(path):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK\x03\x04" + bytes(60), "zip"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (bytes(64), "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        ((100_000_001).to_bytes(8, "little") + b"{" + bytes(60), "100000001"),
        ((1000).to_bytes(8, "little") + b"{" + bytes(60), "truncated"),
    ],
)
def test_other_file_types_are_named(content, text, tmp_path, refused):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with refused(path, text):
        read_header(path)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_named_and_never_opened(protocol, tmp_path, refused):
    path, sprung = tmp_path / "model.ckpt", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(_Trap(sprung), protocol))
    with refused(path, "pickle"):
        read_header(path)
    assert not sprung.exists()


def test_a_torch_checkpoint_is_named(tmp_path, refused):
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    with refused(path, "zip"):
        read_header(path)


def test_unreadable_paths_are_refused(tmp_path, refused):
    file = tmp_path / "file"
    file.write_bytes(VALID)
    for path, text in [(tmp_path / "none", "does not exist"), (file / "below", "does not exist"), (tmp_path, "folder")]:
        with refused(path, text):
            read_header(path)
    with refused("not a file name"):
        read_header("nul\0byte")
    with refused("cannot be opened"):
        read_header(tmp_path / ("x" * 300))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe")
    with refused("regular file"):
        read_header(tmp_path / "pipe")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


def check(path: Path, content: bytes) -> None:
    """Either the header is valid, and then every tensor can be read, or the error is the one that users are shown."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except CheckpointError as error:
        message = str(error)
        header = None
    if header is None:
        assert str(path) in message
        assert "\n" not in message
        return
    assert header.data_start + sum(info.nbytes for info in header.tensors.values()) == len(content)
    with open_checkpoint(path) as checkpoint:
        for name, info in checkpoint.tensors.items():
            assert checkpoint.read(name).nbytes == info.numel * info.dtype.itemsize == info.nbytes


mutations = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=8)


@settings(deadline=None)
@given(mutations)
def test_mutated_files_load_or_are_refused(scratch, changes):
    content = bytearray(VALID)
    for position, value in changes:
        content[position] = value
    check(scratch, bytes(content))


@settings(deadline=None)
@given(st.integers(0, len(VALID)), st.integers(0, len(VALID)), st.binary(max_size=20))
def test_spliced_files_load_or_are_refused(scratch, start, end, inserted):
    check(scratch, VALID[:start] + inserted + VALID[end:])


odd = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("U8"), st.just([2]))
fields = st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), odd | st.lists(odd, max_size=4))


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), odd | fields, max_size=4), st.binary(max_size=8))
def test_any_json_loads_or_is_refused(scratch, header, data):
    text = json.dumps(header).encode()
    check(scratch, len(text).to_bytes(8, "little") + text + data)
