"""The calibration of a model: the statistics of all its layers' inputs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..notices import Notice, notice, render
from ..text import shortened
from .file import read_calibration, write_calibration
from .statistics import FEWEST_ROWS, InputStatistics

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Calibration(Mapping[str, InputStatistics]):
    """Statistics of the layers' inputs by layer name: a mapping as `quantize_file` takes for ``statistics``.

    Layers that get the same input share one sample, which is kept under the name of one of them, their leader.
    """

    samples: dict[str, InputStatistics]
    """Leader -> statistics, without fingerprints and sensitivity."""
    shared: dict[str, str]
    """Layer -> its leader; all layers that were recorded."""
    fingerprints: dict[str, str]
    """Layer -> `fingerprint` of its own weight, without patches."""
    sensitivities: dict[str, float] = field(default_factory=dict)
    """Layer -> sensitivity, of the layers that were probed."""
    unrecorded: tuple[str, ...] = ()
    """Layers that were watched and gave no row: they did not run, or none of their input rows was finite."""
    patched_fingerprints: dict[str, str] = field(default_factory=dict)
    """Layer -> `fingerprint` of its weight with the patches merged that it ran with, of layers that had any."""

    def __getitem__(self, layer: str) -> InputStatistics:
        return replace(
            self.samples[self.shared[layer]],
            fingerprint=self.fingerprints.get(layer),
            patched_fingerprint=self.patched_fingerprints.get(layer),
            sensitivity=self.sensitivities.get(layer),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.shared)

    def __len__(self) -> int:
        return len(self.shared)

    def under(self, prefix: str) -> Calibration:
        """The part of the layers whose names begin with ``prefix``, named without it."""
        inside = {layer.removeprefix(prefix): layer for layer in self if layer.startswith(prefix)}
        shared = {layer: self.shared[full] for layer, full in inside.items()}
        return Calibration(
            samples={leader: self.samples[leader] for leader in shared.values()},
            shared=shared,
            fingerprints=_select(self.fingerprints, inside),
            sensitivities=_select(self.sensitivities, inside),
            unrecorded=tuple(k.removeprefix(prefix) for k in self.unrecorded if k.startswith(prefix)),
            patched_fingerprints=_select(self.patched_fingerprints, inside),
        )

    def summary(self) -> str:
        """`facts` and `warnings`, a line for each."""
        return "\n".join([*self.facts(), *map(render, self.warnings())])

    def facts(self) -> list[str]:
        """Layers, rows and size in a sentence, then what is missing, a sentence for each."""
        samples = self.samples.values()
        rows = [0 if sample.rows is None else len(sample.rows) for sample in samples]
        size = sum(0 if sample.rows is None else sample.rows.nbytes for sample in samples)
        fewest = min(self.samples, key=lambda layer: self.samples[layer].count)
        lines = [
            f"{len(self)} layers calibrated, in {len(rows)} samples of {min(rows)} to {max(rows)} rows, drawn from "
            f"{sum(sample.count for sample in samples)} rows; {size / 1e6:.1f} MB.",
            f"Fewest rows seen: {fewest}, {self.samples[fewest].count}.",
            self._unrecorded_line(),
            self._sensitivity_line(),
        ]
        return [line for line in lines if line]

    def warnings(self) -> list[Notice]:
        """What is wrong with the calibration, whatever is made with it."""
        return note_thin(self.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole calibration: two with the same digest quantize alike."""
        digest = hashlib.sha256(self._description().encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            CheckpointError: if the file cannot be written, or exists and is not to be replaced.
        """
        write_calibration(path, self._tensors(), self._description(), self.digest, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file that `save` has written.

        Raises:
            CheckpointError: if the file is not a calibration, or is damaged.
        """
        fields, digest = read_calibration(path)
        calibration = cls(**fields)
        # Files of the first versions have no digest.
        if digest is not None and digest != calibration.digest:
            raise CheckpointError(f"{path}: the calibration is damaged (its digest differs); record it again.")
        return calibration

    def _unrecorded_line(self) -> str:
        if not self.unrecorded:
            return ""
        return (
            f"Not recorded: {len(self.unrecorded)} layers that did not run, or whose inputs were not finite "
            f"({shortened(self.unrecorded)}); without inputs, they are rounded to nearest."
        )

    def _sensitivity_line(self) -> str:
        if not self.sensitivities:
            return ""
        missing = [layer for layer in self if layer not in self.sensitivities]
        advice = f"; not of {shortened(missing)}: the format auto needs all, so take more probe_steps"
        return f"Sensitivity measured of {len(self.sensitivities)} of {len(self)} layers{advice * bool(missing)}."

    def _tensors(self) -> dict[str, Tensor]:
        samples = self.samples.items()
        tensors = {f"{layer}.{name}": getattr(s, name) for layer, s in samples for name in ("rows", "mean")}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _description(self) -> str:
        """Everything but the tensors, as JSON. Parts that are empty are left out, as in files of the first versions."""
        inputs = {layer: {"absmax": sample.absmax, "count": sample.count} for layer, sample in self.samples.items()}
        fields: dict[str, Any] = {"shared": self.shared, "fingerprints": self.fingerprints, "inputs": inputs}
        optional: dict[str, Any] = {
            "sensitivities": self.sensitivities,
            "unrecorded": list(self.unrecorded),
            "patched_fingerprints": self.patched_fingerprints,
        }
        return json.dumps(fields | {name: value for name, value in optional.items() if value}, sort_keys=True)


def note_thin(statistics: Iterable[InputStatistics]) -> list[Notice]:
    """A notice if layers have calibration rows, but too few; else empty."""
    counts = [len(inputs.rows) for inputs in statistics if inputs.rows is not None]
    thin = [count for count in counts if count < FEWEST_ROWS]
    if not thin:
        return []
    return [notice("calibration_thin", layers=len(thin), total=len(counts), rows=min(thin), needed=FEWEST_ROWS)]


def _select(table: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """The entries of a table under new names: new name -> name in the table."""
    return {new: table[name] for new, name in names.items() if name in table}
