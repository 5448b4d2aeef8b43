"""Finished layers of runs that were interrupted, so that the run that follows does not compute them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from .errors import QuantError
from .files.reader import open_checkpoint
from .files.views import byte_view
from .files.writer import CheckpointWriter
from .layer.task import LayerTask
from .notices import render
from .planning.plan import LayerPlan
from .reports.entries import LayerReport
from .reports.report import nullified
from .version import versions

SUFFIX = ".safetensors"
REPORT, DIGEST = "report", "sha256"
"""Fields of the metadata of a layer's file."""

LIMIT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class FinishedLayer:
    """The result of one layer."""

    tensors: Mapping[str, Tensor]
    """All that the output has of the layer, by the output's names."""
    report: LayerReport


class FinishedLayers:
    """Finished layers in a folder, a file each; the name of a file is a digest of everything that its layer depends on.

    Several threads may use it.

    Args:
        folder: Made when the first layer is kept.
        limit: Bytes of all files; the oldest go first.
    """

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self._used: set[Path] = set()
        self._lock = Lock()

    def find(self, key: str) -> FinishedLayer | None:
        """The layer of a key; None if there is no sound file of it."""
        path = self._path(key)
        try:
            layer = _read(path)
        except (QuantError, OSError, KeyError, TypeError, ValueError):  # a damaged file is made again
            with suppress(OSError):
                path.unlink()
            return None
        self._use(path)
        return layer

    def keep(self, key: str, layer: FinishedLayer) -> None:
        """Write a layer. A full disk, or a folder that cannot be written, is no reason to stop the run."""
        path = self._path(key)
        with suppress(QuantError, OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, layer)
            self._use(path)
            self._prune()

    def forget(self) -> None:
        """Remove the layers that this run has found or kept, and the folder if nothing else is in it."""
        for path in self._used:
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _use(self, path: Path) -> None:
        with self._lock:
            self._used.add(path)

    def _prune(self) -> None:
        entries = sorted(_stat(self.folder.glob(f"*{SUFFIX}")), reverse=True)
        room = self.limit
        for _, size, path in entries:
            room -= size
            if room < 0:
                with suppress(OSError):
                    path.unlink()


def identify_layer(layer: LayerPlan, task: LayerTask, bias: Tensor | None) -> str:
    """A digest of everything that a layer's result depends on.

    Args:
        layer: The layer as it is planned.
        task: Its task. Of the device only its kind counts.
        bias: The bias that is to be corrected with it.
    """
    plain = {
        "name": task.name,
        "why": [layer.reason, *map(render, layer.notes)],
        "format": task.format.name,
        "group": task.group,
        "input_scale": task.input_scale,
        "full_precision": task.full_precision,
        "weight_only": task.weight_only,
        "device": torch.device(task.device).type,
        "recipe": task.recipe.to_dict(),
        "versions": versions(),
        "absmax": task.inputs.absmax,
        "sensitivity": task.inputs.sensitivity,
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for tensor in (task.weight, bias, task.inputs.rows, task.inputs.mean):
        _add(digest, tensor)
    return digest.hexdigest()[:40]


def _add(digest: hashlib._Hash, tensor: Tensor | None) -> None:
    if tensor is None:
        digest.update(b"none")
        return
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(byte_view(tensor.detach().cpu().contiguous()))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _add(digest, tensors[name])
    return digest.hexdigest()


def _write(path: Path, layer: FinishedLayer) -> None:
    tensors = {name: tensor.cpu() for name, tensor in layer.tensors.items()}
    metadata = {REPORT: json.dumps(nullified(asdict(layer.report))), DIGEST: _digest(tensors)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with CheckpointWriter(path, layout, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.commit()


def _read(path: Path) -> FinishedLayer:
    """Raises whatever is wrong with the file."""
    with open_checkpoint(path) as file:
        tensors = {name: file.read(name).clone() for name in file.tensors}
        metadata = dict(file.metadata)
    if _digest(tensors) != metadata[DIGEST]:
        raise ValueError(f"{path} was altered")
    return FinishedLayer(tensors, LayerReport.from_dict(json.loads(metadata[REPORT])))


def _stat(paths: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
    """Time of the last change, size and path of each file."""
    for path in paths:
        with suppress(OSError):
            found = os.stat(path)
            yield found.st_mtime_ns, found.st_size, path
