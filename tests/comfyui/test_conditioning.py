"""Load Class Conditioning in a real server."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibrated_rounding.tools.comfyui import HostError, Server, example_model
from calibrated_rounding.tools.comfyui.graphs import pack_node, stock_node
from safetensors.torch import save_file

SHIPPED = "digits_conditioning.safetensors"


def load_class(server: Server, table: str, class_index: int) -> dict[str, Any]:
    node = pack_node("LoadClassConditioning", table=table, class_index=class_index)
    return server.execute({"1": node, "2": stock_node("PreviewAny", source=["1", 0])})["2"]


def test_shipped_table_loads(server: Server) -> None:
    assert "tensor" in load_class(server, SHIPPED, 3)["text"][0]


def test_table_in_input_folder_loads(server: Server) -> None:
    save_file({"conditioning": torch.full((2, 1, 3), 0.25)}, server.base / "input" / "own.safetensors")
    assert "[[[0.2500, 0.2500, 0.2500]]]" in load_class(server, "own.safetensors", 1)["text"][0]


def test_missing_class_names_existing_classes(server: Server) -> None:
    with pytest.raises(HostError, match="has 11 classes, 0 to 10; class_index is 11"):
        load_class(server, SHIPPED, 11)


def test_file_without_table_is_refused(server: Server) -> None:
    vae = example_model("digits_vae.safetensors")
    (server.base / "input" / vae.name).write_bytes(vae.read_bytes())
    with pytest.raises(HostError, match=r"'digits_vae\.safetensors' is not a conditioning table"):
        load_class(server, "digits_vae.safetensors", 0)


def test_table_of_wrong_shape_is_refused(server: Server) -> None:
    save_file({"conditioning": torch.zeros(11, 64)}, server.base / "input" / "flat.safetensors")
    with pytest.raises(HostError, match=r"must be \[classes, tokens, width\]; it is \[11, 64\]"):
        load_class(server, "flat.safetensors", 0)
