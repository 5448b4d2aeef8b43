"""Values that cross between two interpreters: tensors in a safetensors file, everything else as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSOR = "__tensor__"
"""Key of the JSON object that stands for a tensor; its value is the tensor's name in the safetensors file."""


def write_values(folder: Path, values: Mapping[str, Any]) -> None:
    """Write values into a new folder; `read_values` is the inverse.

    Args:
        folder: Must not exist.
        values: Whatever JSON holds, and tensors and paths at any depth. Tuples are read back as lists, paths as text.

    Raises:
        TypeError: A value is none of these.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: object) -> object:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
            return {TENSOR: name}
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"{type(value).__name__} cannot be passed to another interpreter")

    text = json.dumps(values, default=encode)
    folder.mkdir()
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "values.json").write_text(text, encoding="utf-8")


def read_values(folder: Path) -> dict[str, Any]:
    """Read what `write_values` wrote."""
    tensors = load_file(folder / "tensors.safetensors")

    def decode(item: dict[str, Any]) -> Any:
        return tensors[item[TENSOR]] if item.keys() == {TENSOR} else item

    values: dict[str, Any] = json.loads((folder / "values.json").read_text(encoding="utf-8"), object_hook=decode)
    return values
