from __future__ import annotations

import json
import os

import pytest
import torch
from calibrated_rounding.quant.files import DTYPES, CheckpointWriter, open_checkpoint, read_header
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

F32, U8 = torch.float32, torch.uint8


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(U8).numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    return torch.tensor(list(data), dtype=U8).view(dtype).reshape(shape)


def test_safetensors_reads_written_file(tmp_path, save, tensors):
    path = save(tmp_path / "model.safetensors", tensors, {"k": "v", "ключ": 'значение\n"\\'})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "v", "ключ": 'значение\n"\\'}
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("round") / "model.safetensors"


@st.composite
def named_tensors(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=6))
    result = {}
    for name in names:
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        size = torch.Size(shape).numel() * dtype.itemsize
        result[name] = from_bytes(draw(st.binary(min_size=size, max_size=size)), dtype, shape)
    return result


@settings(deadline=None)
@given(named_tensors(), st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3))
def test_every_dtype_and_shape_survives(scratch, save, tensors, metadata):
    path = save(scratch, tensors, metadata)
    with safe_open(path, "pt") as file, open_checkpoint(path) as checkpoint:
        assert set(file.keys()) == set(checkpoint.tensors) == set(tensors)
        assert (file.metadata() or {}) == checkpoint.metadata == metadata
        for name, tensor in tensors.items():
            for copy in (file.get_tensor(name), checkpoint.read(name)):
                assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
                assert raw(copy) == raw(tensor)
        header = read_header(path)
        assert header.data_start % 8 == 0
        assert all(info.start % info.dtype.itemsize == 0 for info in header.tensors.values()), "views must be aligned"


def test_wide_elements_come_first_and_the_order_stays(tmp_path, save):
    kinds = {"a": U8, "b": F32, "c": torch.float16, "d": torch.float64, "e": F32, "f": torch.int8, "g": torch.bfloat16}
    path = save(tmp_path / "m", {name: torch.ones(3).to(dtype) for name, dtype in kinds.items()})
    assert list(read_header(path).tensors) == ["d", "b", "e", "c", "g", "a", "f"]


def test_the_same_input_gives_the_same_bytes(tmp_path, save, tensors):
    first = save(tmp_path / "first", tensors, {"a": "1", "b": "2"})
    second = tmp_path / "second"
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with CheckpointWriter(second, layout, {"b": "2", "a": "1"}) as writer:
        for name, tensor in reversed(tensors.items()):
            writer.write_chunks(name, [raw(tensor)])
        writer.commit()
    assert first.read_bytes() == second.read_bytes()


def test_any_memory_order_is_written(tmp_path, save):
    base = torch.arange(24.0).reshape(4, 6) * (1 + 2j)
    tensors = {
        "transposed": base.real.T,
        "strided": base.real[::2, 1::3],
        "expanded": torch.tensor(3.0).expand(2, 3),
        "conjugate": base.conj(),
        "negative": base.conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "fp8": torch.arange(6.0).reshape(2, 3).T.to(torch.float8_e4m3fn),
    }
    loaded = load_file(save(tmp_path / "m", tensors))
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name].to(torch.complex64), tensor.detach().to(torch.complex64)), name


def test_chunks_of_any_kind_fill_a_slot(tmp_path):
    path = tmp_path / "m"
    data = torch.arange(10, dtype=torch.int32)
    with CheckpointWriter(path, {"a": (torch.int32, (10,)), "none": (F32, (0,))}, {}) as writer:
        writer.write_chunks("a", iter([raw(data)[:7], memoryview(raw(data))[7:8], b"", bytearray(raw(data)[8:])]))
        writer.write_chunks("none", [])
        writer.commit()
    assert torch.equal(load_file(path)["a"], data)


def test_chunks_stream_from_a_checkpoint(tmp_path, save, tensors):
    source, copy = save(tmp_path / "a", tensors, {"k": "v"}), tmp_path / "b"
    with open_checkpoint(source) as checkpoint:
        layout = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        with CheckpointWriter(copy, layout, checkpoint.metadata) as writer:
            for name in checkpoint.tensors:
                writer.write_chunks(name, checkpoint.chunks(name, 4))
            writer.commit()
    assert copy.read_bytes() == source.read_bytes()


def test_tensors_and_slots_must_match(tmp_path, refused):
    path = tmp_path / "m.safetensors"
    with CheckpointWriter(path, {"a": (F32, (2, 3)), "b": (U8, (1,))}, {}) as writer:
        for tensor in (torch.ones(3, 2), torch.ones(2, 3).half(), torch.ones(6), torch.ones(2, 3, 1)):
            with refused(path, "'a'", "float32 [2, 3]"):
                writer.write("a", tensor)
        with refused(path, "'a'", "no data"):
            writer.write("a", torch.empty(2, 3, device="meta"))
        with refused(path, "'a'", "sparse"):
            writer.write("a", torch.ones(2, 3).to_sparse())
        with refused(path, "'c'", "not part"):
            writer.write("c", torch.ones(2, 3))
        for chunks in ([], [bytes(23)]):
            with refused(path, "'a'", "24"):
                writer.write_chunks("a", chunks)
        with refused(path, "'a'", "more than the 24"):
            writer.write_chunks("a", [bytes(20), bytes(5)])
        with refused(path, "incomplete", "2 tensors", "'a'"):
            writer.commit()
        writer.write("a", torch.ones(2, 3))
        for again in (lambda: writer.write("a", torch.ones(2, 3)), lambda: writer.write_chunks("a", [bytes(24)])):
            with refused(path, "'a'", "twice"):
                again()
        with refused(path, "incomplete", "'b'"):
            writer.commit()
        writer.write("b", torch.ones(1, dtype=U8))
        writer.commit()
    assert torch.equal(load_file(path)["a"], torch.ones(2, 3)), "refused writes leave no trace"


def test_failing_chunks_leave_slot_empty(tmp_path, refused):
    def failing():
        yield bytes(4)
        raise RuntimeError("no more")

    with CheckpointWriter(tmp_path / "m", {"a": (F32, (2,))}, {}) as writer:
        with pytest.raises(RuntimeError, match="no more"):
            writer.write_chunks("a", failing())
        with refused("incomplete"):
            writer.commit()


@pytest.mark.parametrize(
    ("layout", "metadata", "text"),
    [
        ({"__metadata__": (U8, (1,))}, {}, "'__metadata__'"),
        ({"\ud800": (U8, (1,))}, {}, "\\ud800"),
        ({"a": (torch.complex128, (1,))}, {}, "complex128"),
        ({"a": (U8, (-1,))}, {}, "impossible shape"),
        ({"a": (F32, (2**40, 2**40))}, {}, "impossible shape"),
        ({"a": (U8, (1,))}, {"k": 1}, "'k'"),
        ({"a": (U8, (1,))}, {1: "v"}, "field 1"),
        ({"a": (U8, (1,))}, {"k": "\ud800"}, "'k'"),
        ({"a": (U8, (1,))}, {"k": "x" * 100_000_000}, "too many"),
    ],
)
def test_unstorable_tensors_are_refused(layout, metadata, text, tmp_path, refused):
    with refused("m.safetensors", text):
        CheckpointWriter(tmp_path / "m.safetensors", layout, metadata)
    assert os.listdir(tmp_path) == []


def written(path, first, last):
    with CheckpointWriter(path, {"a": (U8, (3,))}, first) as writer:
        writer.write("a", torch.ones(3, dtype=U8))
        writer.commit(last)
    return load_file(path)["a"].tolist(), read_header(path).metadata


@pytest.mark.parametrize("last", [{"hash": "f" * 64}, {"hash": ""}, {}, {"another": "name"}])
def test_metadata_can_be_replaced_at_the_end(tmp_path, last):
    path = tmp_path / "m.safetensors"
    assert written(path, {"hash": "0" * 64}, last) == ([1, 1, 1], last)
    with safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == last
    content = path.read_bytes()
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_metadata_beyond_reserved_space_is_refused(tmp_path, refused):
    with refused("m.safetensors", "outgrew"):
        written(tmp_path / "m.safetensors", {"hash": "0" * 64}, {"hash": "0" * 80})
    assert os.listdir(tmp_path) == []


def test_a_file_of_nothing_is_valid(tmp_path, save):
    assert load_file(save(tmp_path / "m", {})) == {}


def test_a_finished_writer_takes_no_more(tmp_path, refused):
    path = tmp_path / "m"
    with CheckpointWriter(path, {"a": (U8, (3,))}, {}) as writer:
        writer.write("a", torch.ones(3, dtype=U8))
        writer.commit()
        with refused(path, "not open"):
            writer.commit()
    with refused(path, "not open"):
        CheckpointWriter(path, {"a": (U8, (3,))}, {}).write("a", torch.ones(3, dtype=U8))
    assert load_file(path)["a"].tolist() == [1, 1, 1]
