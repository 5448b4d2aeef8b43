"""Files of which only some bytes are at hand: inspected like the file on a disk, refused with the same sentences."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated_rounding.quant import CheckpointError, Recipe, quantize_file
from calibrated_rounding.quant.files import partial, read_header
from calibrated_rounding.quant.files.gguf import WINDOW
from calibrated_rounding.quant.files.partial import MOST_BYTES, MissingBytes, PartialFile, find_needed, open_partial
from calibrated_rounding.quant.reports.inspection import inspect_file, inspect_partial
from calibrated_rounding.tests.quant.files.gguf_files import list_field, text_field, write_gguf
from calibrated_rounding.tests.quant.files.partial_files import message, send
from calibrated_rounding.tests.quant.files.quantized_layers import recognised
from safetensors.torch import save_file

E4M3 = torch.float8_e4m3fn
SCALED = {
    "l.weight": torch.zeros(16, 16).to(E4M3),
    "l.scale_weight": torch.ones(()),
    "scaled_fp8": torch.zeros(0, dtype=E4M3),
}
"""An older file of ComfyUI's, without markers."""
ROWS = 64
INT8 = {
    "l.weight": torch.zeros(ROWS, 4096, dtype=torch.int8),
    "l.weight_scale": torch.full((ROWS, 1), float("nan")),
    "l.comfy_quant": torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8),
}


def assert_same_inspection(path: Path) -> None:
    file, _ = send(path)
    assert inspect_partial(file) == replace(inspect_file(path), path=path.name)


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "int8_convrot", "int8_blockwise", "mxfp8", "w4a8", "w6a8", "nvfp4"])
def test_own_file_is_inspected_as_on_disk(fmt: str, digits_path: Path, tmp_path: Path) -> None:
    quantize_file(digits_path, tmp_path / "q.safetensors", Recipe(format=fmt))
    assert_same_inspection(tmp_path / "q.safetensors")


@pytest.mark.parametrize("tensors", [*recognised().values(), SCALED, INT8], ids=[*recognised(), "scaled_fp8", "nan"])
def test_foreign_file_is_inspected_as_on_disk(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "foreign.safetensors")
    assert_same_inspection(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("words", [0, 200_000])
def test_gguf_file_is_inspected_as_on_disk(words: int, tmp_path: Path) -> None:
    fields = [text_field("general.architecture", "wan"), list_field("tokens", ["of a vocabulary"] * words)]
    write_gguf(tmp_path / "model.gguf", {"a.weight": ("Q4_K", (4096, 4096)), "a.bias": ("F32", (512,))}, fields)
    assert_same_inspection(tmp_path / "model.gguf")


def test_weights_are_not_sent(digits_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    quantize_file(digits_path, path, Recipe(format="int8_convrot"))
    file, ranges = send(path)
    header = read_header(path)
    small = sum(info.nbytes for info in header.tensors.values() if info.nbytes < 10_000)
    assert sum(end - start for start, end in ranges) < header.data_start + small < path.stat().st_size / 10
    checkpoint, missing = open_partial(file)
    assert "blocks.0.ffn.0.weight" in missing
    with pytest.raises(MissingBytes):
        checkpoint.read("blocks.0.ffn.0.weight")
    with pytest.raises(MissingBytes):
        file.sha256()


@pytest.mark.parametrize(("limit", "room"), [("LARGEST_SCALES", 4 * ROWS), ("MOST_SCALES", 4 * ROWS)])
def test_large_scales_are_not_read(limit: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(INT8, tmp_path / "m.safetensors")
    for size, unread in ((room, 0), (room - 1, 1)):
        monkeypatch.setattr(partial, limit, size)
        found = inspect_partial(send(tmp_path / "m.safetensors")[0])
        assert (found.unread, any("not finite" in text for text in found.obstacles)) == (unread, not unread)
        assert [(entry.format, entry.scale) for entry in found.entries] == [("int8_tensorwise", (ROWS, 1))]


def cut(path: Path) -> None:
    save_file(INT8, path)
    path.write_bytes(path.read_bytes()[:-1])


def cut_header(path: Path) -> None:
    save_file(INT8, path)
    path.write_bytes(path.read_bytes()[:100])


def cut_gguf(path: Path) -> None:
    write_gguf(path, {"a.weight": ("Q4_K", (512, 256))})
    path.write_bytes(path.read_bytes()[:40])


DAMAGED = {
    "truncated": cut,
    "truncated in its header": cut_header,
    "truncated GGUF": cut_gguf,
    "empty": Path.touch,
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "JSON": lambda path: path.write_text('{"nodes": []}'),
    "web page": lambda path: path.write_text("<!DOCTYPE html>"),
    "pickle": lambda path: path.write_bytes(b"\x80\x02}q\x00."),
    "zipped pickle": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "two bytes": lambda path: path.write_bytes(b"\x01\x00"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_refused_as_on_disk(case: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    DAMAGED[case](path)
    with pytest.raises(CheckpointError) as on_disk:
        inspect_file(path)
    with pytest.raises(CheckpointError) as sent:
        send(path)
    assert str(sent.value) == str(on_disk.value).replace(str(path), "file.bin")
    assert not isinstance(sent.value, MissingBytes)


def test_index_of_shards_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "../../secret"}}')
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is the index of a model in several"):
        send(path)


def test_shard_is_known_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(SCALED, tmp_path / "part.safetensors")
    index = {"weight_map": {"a": "part.safetensors", "b": "other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.chdir(tmp_path)
    assert "one of the 2 shards" in inspect_file("part.safetensors").obstacles[0]
    assert inspect_partial(send(tmp_path / "part.safetensors")[0]).obstacles == []
    file, _ = send(tmp_path / "part.safetensors", "model-00001-of-00003.safetensors")
    assert "1 of 3 shards" in inspect_partial(file).obstacles[0]


@pytest.mark.parametrize(
    ("name", "bare"),
    [("../../etc/a.safetensors", "a.safetensors"), ("C:\\models\\a.sft", "a.sft"), ("a\nb", "file"), ("..", "file")],
)
def test_name_never_leads_to_a_folder(name: str, bare: str) -> None:
    assert PartialFile(name, 0, [], b"").path == Path(bare)


def test_header_that_is_too_large_is_refused() -> None:
    length = MOST_BYTES + 1
    begin = length.to_bytes(8, "little") + b"{".ljust(24)
    with pytest.raises(CheckpointError, match="a header of more than 56 MB"):
        find_needed(PartialFile("a.safetensors", 2**40, [(0, len(begin))], begin))
    text = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, length) + bytes(WINDOW)
    with pytest.raises(CheckpointError, match="a header of more than 56 MB"):
        find_needed(PartialFile("a.gguf", 2**40, [(0, len(text))], text))


VALID = {"name": "a", "size": 10, "ranges": [[0, 2], [5, 6]]}


def encode(fields: object, data: bytes = b"abc") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_message_holds_its_ranges() -> None:
    file = PartialFile.from_message(encode(VALID))
    assert [bytes(file.read(*place)) for place in ((0, 2), (1, 1), (5, 1), (7, 0))] == [b"ab", b"b", b"c", b""]
    for start, count in ((0, 3), (2, 1), (4, 2), (6, 1)):
        assert not file.holds(start, start + count)
        with pytest.raises(MissingBytes):
            file.read(start, count)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        encode([]),
        encode(VALID, b"ab"),
        encode(VALID, b"abcd"),
        *(encode(VALID | {"name": name}) for name in (None, 1, "\ud800")),
        *(encode(VALID | {"size": size}) for size in (5, -1, "10", 10.0, True, None)),
        *(encode(VALID | {"ranges": r}) for r in (None, {}, [1], [[0]], [[0, 1, 2]], [[0.0, 3]], [[0, "3"]])),
        *(encode(VALID | {"ranges": r}) for r in ([[5, 6], [0, 2]], [[0, 2], [1, 2]], [[2, 0], [0, 5]], [[-3, 0]])),
        encode(VALID | {"ranges": [[9, 12]]}),
    ],
)
def test_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        PartialFile.from_message(data)


def test_answer_asks_for_all_that_is_needed(tmp_path: Path) -> None:
    save_file(INT8, tmp_path / "m.safetensors")
    start = read_header(tmp_path / "m.safetensors").data_start
    file = PartialFile.from_message(message(tmp_path / "m.safetensors", [(0, start)]))
    ((begin, _), *others) = find_needed(file)
    assert begin == 0 and sum(end - start for start, end in others) < 1000
    with pytest.raises(MissingBytes):
        inspect_partial(file)
