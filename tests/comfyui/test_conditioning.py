"""The node that reads class conditionings, in a real server."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calibrated_rounding.tests.comfyui.harness import HostError, Server, example_model
from safetensors.torch import save_file

SHIPPED = "digits_conditioning.safetensors"


def load(server: Server, table: str, class_index: int) -> dict[str, Any]:
    node = {
        "class_type": "CalibratedRoundingLoadClassConditioning",
        "inputs": {"table": table, "class_index": class_index},
    }
    return server.execute({"1": node, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}})["2"]


def test_the_shipped_table_is_listed_and_read(server: Server) -> None:
    assert "tensor" in load(server, SHIPPED, 3)["text"][0]


def test_a_table_of_ones_own_is_read_from_the_input_folder(server: Server) -> None:
    save_file({"conditioning": torch.full((2, 1, 3), 0.25)}, server.base / "input" / "own.safetensors")
    assert "[[[0.2500, 0.2500, 0.2500]]]" in load(server, "own.safetensors", 1)["text"][0]


def test_a_class_that_the_table_lacks_is_named_with_those_it_has(server: Server) -> None:
    with pytest.raises(HostError, match="has 11 classes, 0 to 10; class_index is 11"):
        load(server, SHIPPED, 11)


def test_a_file_without_a_table_is_refused(server: Server) -> None:
    vae = example_model("digits_vae.safetensors")
    (server.base / "input" / vae.name).write_bytes(vae.read_bytes())
    with pytest.raises(HostError, match=r"'digits_vae\.safetensors' is not a conditioning table"):
        load(server, "digits_vae.safetensors", 0)


def test_a_table_of_another_shape_is_refused(server: Server) -> None:
    save_file({"conditioning": torch.zeros(11, 64)}, server.base / "input" / "flat.safetensors")
    with pytest.raises(HostError, match=r"must be \[classes, tokens, width\]; it is \[11, 64\]"):
        load(server, "flat.safetensors", 0)
