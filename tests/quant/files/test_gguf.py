"""Headers of GGUF files: names, shapes, types and sizes; and files that are damaged in every length that they state."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from calibrated_rounding.quant import CheckpointError
from calibrated_rounding.quant.cli import main
from calibrated_rounding.quant.files.gguf import TYPES, is_gguf, read_gguf
from calibrated_rounding.quant.reports.inspection import inspect_file
from calibrated_rounding.tests.quant.files.gguf_files import (
    header,
    list_field,
    number_field,
    numbers_field,
    text_field,
    write_gguf,
)

TENSORS = {
    "blocks.0.self_attn.q.weight": ("Q4_K", (512, 256)),
    "blocks.0.self_attn.q.bias": ("F32", (512,)),
    "head.modulation": ("BF16", (1, 2, 96)),
}
FIELDS = (
    text_field("general.architecture", "wan"),
    number_field("general.file_type", 15),
    list_field("tokenizer.ggml.tokens", ["a", "b" * 100]),
    numbers_field("tokenizer.ggml.token_type", range(1000)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_gguf(path, TENSORS, FIELDS)
    return path


def test_header_lists_every_tensor(path: Path) -> None:
    found = read_gguf(path)
    assert {t.name: (t.type, t.shape) for t in found.tensors} == TENSORS
    assert [t.nbytes for t in found.tensors] == [512 * 144, 4 * 512, 2 * 192]
    assert [t.is_quantized for t in found.tensors] == [True, False, False]
    assert found.fields == {"general.architecture": "wan", "general.file_type": "15"}


def test_sizes_of_blocks_match_the_bits_that_names_state() -> None:
    for title, block, nbytes in TYPES.values():
        bits = float("".join(c for c in title.split("_")[0] if c.isdigit()))
        stored = 8 * nbytes / block
        assert bits <= stored <= bits + 1.51, title  # scales and minima come on top


def test_inspection_lists_layers_and_the_way_out(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect_file(path)
    assert [(entry.format, entry.quantized) for entry in found.entries] == [
        ("Q4_K", True),
        ("float32", False),
        ("bfloat16", False),
    ]
    assert found.totals()["Q4_K"] == {"count": 1, "bytes": 512 * 144}
    (obstacle,) = found.obstacles
    assert "architecture 'wan'" in obstacle and "safetensors file in 16 bits" in obstacle
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "blocks.0.self_attn.q.weight" in printed and "512x256" in printed and "Q4_K" in printed


def test_safetensors_header_of_that_length_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"GGUF\0\0\0\0{")
    assert not is_gguf(tmp_path / "model.safetensors") and not is_gguf(tmp_path / "missing")


def test_every_truncation_is_one_sentence(tmp_path: Path) -> None:
    head, _ = header(TENSORS, FIELDS[:2])
    for length in range(9, len(head), 7):
        (tmp_path / "cut.gguf").write_bytes(head[:length])
        with pytest.raises(CheckpointError, match="ends inside its header"):
            read_gguf(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "its version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "lists 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "announces 1152921504606846976 fields"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 2**63), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(16), "no UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 10, 2**62), "ends inside its"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<I", 2**31), "has 2147483648 dimensions"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQIQ", 1, 8, 77, 0), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQIQ", 1, 8, 12, 0), "no blocks of Q4_K"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQIQ", 1, 2**40, 0, 0), "more bytes than"),
        (header({"a": ("F32", (1,))})[0].replace(struct.pack("<IQQ", 3, 1, 0), struct.pack("<IQQ", 3, 2, 0))
         + header({"a": ("F32", (1,))})[0][24:] + bytes(64), "holds a tensor twice"),
    ],
)  # fmt: skip
def test_damaged_header_is_refused_in_one_sentence(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        inspect_file(tmp_path / "bad.gguf")
    assert words in str(error.value) and "\n" not in str(error.value)
