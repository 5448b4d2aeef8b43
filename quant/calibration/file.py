"""A sample of what each layer of a model is fed, taken while the model runs, in bounded memory, and kept as a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import CheckpointWriter, open_checkpoint
from ..text import shortened
from .statistics import InputStatistics

CALIBRATION_KEY = "calibrated_rounding_calibration"


@dataclass(frozen=True)
class Calibration(Mapping[str, InputStatistics]):
    """What is known of the layers' inputs, by layer name: a mapping as `quantize_file` takes for ``statistics``.

    samples: by leading layer. shared: the leading layer of each layer. fingerprints: of the weights of the model that
    ran, by layer. sensitivities: as in `InputStatistics`, of the layers that were probed.
    """

    samples: dict[str, InputStatistics]
    shared: dict[str, str]
    fingerprints: dict[str, str]
    sensitivities: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> InputStatistics:
        prints, sensitivity = self.fingerprints.get(layer), self.sensitivities.get(layer)
        return replace(self.samples[self.shared[layer]], fingerprint=prints, sensitivity=sensitivity)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shared)

    def __len__(self) -> int:
        return len(self.shared)

    def under(self, prefix: str) -> Calibration:
        """What is known of the layers whose names begin with ``prefix``, named without it."""
        inside = {layer.removeprefix(prefix): layer for layer in self if layer.startswith(prefix)}
        prints = {layer: self.fingerprints[full] for layer, full in inside.items() if full in self.fingerprints}
        shared = {layer: self.shared[full] for layer, full in inside.items()}
        probed = {layer: self.sensitivities[full] for layer, full in inside.items() if full in self.sensitivities}
        return Calibration({leader: self.samples[leader] for leader in shared.values()}, shared, prints, probed)

    def summary(self) -> str:
        """Layers, rows and size, in a sentence, and the layer that was fed least."""
        known = self.samples.values()
        rows = [0 if sample.rows is None else len(sample.rows) for sample in known]
        size = sum(0 if sample.rows is None else sample.rows.nbytes for sample in known)
        least = min(self.samples, key=lambda layer: self.samples[layer].count)
        return (
            f"{len(self)} layers calibrated, in {len(rows)} samples; {min(rows)} to {max(rows)} rows each of "
            f"{sum(sample.count for sample in known)} seen; {size / 1e6:.1f} MB.\n"
            f"Fed least: {least}, {self.samples[least].count} rows.{self._probed()}"
        )

    def _probed(self) -> str:
        """A line that says whose sensitivity is known, if that of any layer is."""
        missing = [layer for layer in self if layer not in self.sensitivities]
        if not self.sensitivities:
            return ""
        advice = f"; not of {shortened(missing)}: the format auto needs all, so take more probe_steps"
        return f"\nSensitivity measured of {len(self.sensitivities)} of {len(self)} layers{advice * bool(missing)}."

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that is known: calibrations with the same one quantize alike."""
        found = hashlib.sha256(self._described().encode())
        for name, tensor in sorted(self._tensors().items()):
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            CheckpointError: that is not possible, or there is a file that is not to be replaced.
        """
        tensors = self._tensors()
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with CheckpointWriter(path, layout, {CALIBRATION_KEY: self._described()}, overwrite=overwrite) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
            writer.commit()

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{layer}.{name}": getattr(k, name) for layer, k in self.samples.items() for name in ("rows", "mean")}

    def _described(self) -> str:
        extremes = {layer: {"absmax": known.absmax, "count": known.count} for layer, known in self.samples.items()}
        described = {"shared": self.shared, "fingerprints": self.fingerprints, "inputs": extremes}
        described |= {"sensitivities": self.sensitivities} if self.sensitivities else {}
        return json.dumps(described, sort_keys=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote. Raises CheckpointError if the file is not a calibration."""
        with open_checkpoint(path) as checkpoint:
            try:
                described = json.loads(checkpoint.metadata[CALIBRATION_KEY])
                samples = {
                    layer: InputStatistics(
                        checkpoint.read(f"{layer}.mean"),
                        float(known["absmax"]),
                        checkpoint.read(f"{layer}.rows"),
                        int(known["count"]),
                    )
                    for layer, known in described["inputs"].items()
                }
                probed = {layer: float(value) for layer, value in described.get("sensitivities", {}).items()}
                return cls(samples, dict(described["shared"]), dict(described["fingerprints"]), probed)
            except (KeyError, ValueError, TypeError, AttributeError):
                raise CheckpointError(f"{path} is not a calibration file of this pack.") from None
