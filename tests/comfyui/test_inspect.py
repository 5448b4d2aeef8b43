"""What Is This File?: files of every format and of other makers, asked as the page asks and run as a node."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from calibrated_rounding.quant import Recipe, quantize_file
from calibrated_rounding.quant.calibration.calibration import Calibration
from calibrated_rounding.quant.calibration.statistics import InputStatistics
from calibrated_rounding.quant.files.partial import MOST_MESSAGE, Range
from calibrated_rounding.quant.formats import FORMATS
from calibrated_rounding.tests.quant.files.gguf_files import text_field, write_gguf
from calibrated_rounding.tests.quant.files.partial_files import FIRST, ROUNDS, message
from calibrated_rounding.tests.quant.files.quantized_layers import recognised
from calibrated_rounding.tools.comfyui import HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import pack_node
from safetensors.torch import load_file, save_file

DIGITS = example_model("digits_wan.safetensors")
VERDICTS = {"runs_here", "saves_memory_here", "loads_here", "format_unknown_here"}
DROPPED = "/calibrated_rounding/inspect_dropped"
EMULATED = {"float8_e4m3fn", "mxfp8", "nvfp4"}
"""Formats that a CPU does not compute in."""


def inspect(server: Server, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = server.get("/calibrated_rounding/inspect", file=f"diffusion_models/{name}")
    return answer


def inspect_dropped(server: Server, path: Path) -> dict[str, Any]:
    """What the panel shows of a file that only the page can read."""
    ranges: list[Range] = [(0, min(path.stat().st_size, FIRST))]
    for _ in range(ROUNDS):
        answer: dict[str, Any] = server.post_bytes(DROPPED, message(path, ranges))
        if "send" not in answer:
            return answer
        ranges = answer["send"]
    raise AssertionError(f"The server still asks for bytes of {path.name}.")


def kinds(answer: dict[str, Any]) -> set[str]:
    return {entry["kind"] for entry in answer["notices"]}


def texts(answer: dict[str, Any]) -> str:
    return " ".join(str(entry["values"].get("text", "")) for entry in answer["notices"])


@pytest.mark.parametrize("fmt", FORMATS)
def test_own_formats_are_described(server: Server, tmp_path: Path, fmt: str) -> None:
    path = tmp_path / f"inspected_{fmt}.safetensors"
    report = quantize_file(DIGITS, path, Recipe(format=fmt))
    answer = inspect(server, server.add_model("diffusion_models", path))
    assert (answer["title"], answer["bytes"]) == ("WAN 2.1 and 2.2", path.stat().st_size)
    assert {row["format"]: row["layers"] for row in answer["formats"]} == {fmt: report.totals.layers}
    assert (answer["recipe"]["format"], answer["recipe"]["rounding"]) == (fmt, "nearest")
    assert len(answer["made"]["source"]) == 64
    (verdict,) = kinds(answer) & VERDICTS
    if fmt in EMULATED:
        assert verdict in ("saves_memory_here", "format_unknown_here")
    if fmt.startswith("int8_") and "block" not in fmt:
        assert verdict == "runs_here"


@pytest.mark.parametrize("fmt", recognised())
def test_other_makers_formats_are_named(server: Server, tmp_path: Path, fmt: str) -> None:
    path = tmp_path / f"foreign_{fmt}.safetensors"
    save_file(recognised()[fmt], path)
    answer = inspect(server, server.add_model("diffusion_models", path))
    assert answer["recipe"] is None and answer["made"] is None
    assert [row["layers"] for row in answer["formats"]] == [1]
    assert kinds(answer) - {"obstacle"}, "ComfyUI's verdict is missing"


def test_foreign_files_come_with_a_way_out(server: Server, tmp_path: Path) -> None:
    cases: dict[str, Any] = {
        "nf4": {
            "l.weight": torch.zeros(64, 1, dtype=torch.uint8),
            "l.weight.absmax": torch.ones(2),
            "l.weight.quant_map": torch.ones(16),
        },
        "diffusers": {"transformer_blocks.0.attn.to_q.weight": torch.ones(8, 8), "x_embedder.weight": torch.ones(8, 8)},
        "float": {"a.weight": torch.ones(8, 8)},
    }
    answers = {}
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        answers[name] = inspect(server, server.add_model("diffusion_models", tmp_path / f"{name}.safetensors"))
    assert "bitsandbytes" in texts(answers["nf4"]) and answers["nf4"]["formats"][0]["format"] == "bitsandbytes"
    assert {"obstacle", "not_quantized"} <= kinds(answers["diffusers"])
    assert kinds(answers["float"]) == {"not_quantized"}


def test_gguf_file_is_offered_and_explained(server: Server, tmp_path: Path) -> None:
    tensors = {"double_blocks.0.img_attn.proj.weight": ("Q4_K", (256, 512)), "img_in.bias": ("F32", (64,))}
    write_gguf(tmp_path / "flux-Q4_K.gguf", tensors, [text_field("general.architecture", "flux")])
    name = server.add_model("diffusion_models", tmp_path / "flux-Q4_K.gguf")
    info = server.object_info("CalibratedRoundingInspectFile")
    assert f"diffusion_models/{name}" in json.dumps(info)
    answer = inspect(server, name)
    assert "GGUF" in texts(answer) and "16 bits" in texts(answer)
    assert answer["formats"] == [{"format": "Q4_K", "layers": 1, "bytes": 256 * 512 // 256 * 144}]
    assert answer["kept"] == {"count": 1, "bytes": 256}
    assert answer["recipe"] is None and kinds(answer) == {"obstacle"}


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "int8_convrot", "w4a8", "nvfp4"])
def test_dropped_file_is_described_as_a_picked_one(server: Server, tmp_path: Path, fmt: str) -> None:
    path = tmp_path / f"dropped_{fmt}.safetensors"
    quantize_file(DIGITS, path, Recipe(format=fmt))
    dropped = inspect_dropped(server, path)
    picked = inspect(server, server.add_model("diffusion_models", path))
    first, *others = dropped["notices"]
    assert (first["kind"], first["values"]["folder"]) == ("not_in_folder", "diffusion_models")
    assert dropped | {"notices": others} == picked


def test_dropped_gguf_file_is_explained(server: Server, tmp_path: Path) -> None:
    tensors = {"double_blocks.0.img_attn.proj.weight": ("Q4_K", (256, 512)), "img_in.bias": ("F32", (64,))}
    write_gguf(tmp_path / "dropped.gguf", tensors, [text_field("general.architecture", "flux")])
    answer = inspect_dropped(server, tmp_path / "dropped.gguf")
    assert answer["formats"] == [{"format": "Q4_K", "layers": 1, "bytes": 256 * 512 // 256 * 144}]
    assert kinds(answer) & {"not_in_folder", "not_in_any_folder"} and "16 bits" in texts(answer)


def test_dropped_all_in_one_file_belongs_in_checkpoints(server: Server, tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(DIGITS).items()}
    save_file(tensors | {"first_stage_model.decoder.conv_in.weight": torch.ones(4, 4)}, tmp_path / "all.safetensors")
    answer = inspect_dropped(server, tmp_path / "all.safetensors")
    assert answer["notices"][0]["values"] == {"folder": "checkpoints"}


def test_dropped_calibration_is_named(server: Server, tmp_path: Path) -> None:
    sample = InputStatistics(mean=torch.zeros(4), absmax=1.0, rows=torch.ones(8, 4), count=8)
    Calibration(samples={"a": sample}, shared={"a": "a"}, fingerprints={}).save(tmp_path / "c.safetensors")
    answer = inspect_dropped(server, tmp_path / "c.safetensors")
    assert kinds(answer) == {"dropped_calibration"} and answer["recipe"] is None


def test_dropped_picture_is_refused_in_words(server: Server, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    answer = inspect_dropped(server, tmp_path / "picture.png")
    assert kinds(answer) == {"refused"} and texts(answer).startswith("picture.png is not a safetensors file")


def test_other_messages_are_refused(server: Server) -> None:
    for body in (b"", b"{}", bytes(100), (10**6).to_bytes(8, "little") + b"{}"):
        with pytest.raises(HostError, match=f"{DROPPED}: 400 "):
            server.post_bytes(DROPPED, body)


def test_long_message_is_refused_before_it_is_read(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.putrequest("POST", DROPPED)
    connection.putheader("Content-Length", str(MOST_MESSAGE + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and b"up to 64 MB; copy it into a model folder" in answer.read()
    connection.close()


def test_missing_files_are_refused(server: Server) -> None:
    for name in ("none.safetensors", "../../secret"):
        with pytest.raises(HostError, match="400"):
            inspect(server, name)


def test_node_reports_every_layer(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "reported.safetensors"
    quantize_file(DIGITS, path, Recipe(format="int8_row"))
    name = server.add_model("diffusion_models", path)
    outputs = server.execute({"1": pack_node("InspectFile", file=f"diffusion_models/{name}")})
    assert "blocks.0.ffn.0" in outputs["1"]["text"][0] and "total: " in outputs["1"]["text"][0]
    assert outputs["1"]["calibrated_rounding"][0]["inspected"]["recipe"]["format"] == "int8_row"


def test_only_files_with_a_recipe_are_offered(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "with_recipe.safetensors"
    quantize_file(DIGITS, path, Recipe(format="int8_row"))
    name = server.add_model("diffusion_models", path)
    offered = json.dumps(server.object_info("CalibratedRoundingLoadRecipe"))
    assert f"diffusion_models/{name}" in offered and "digits_wan.safetensors" not in offered
