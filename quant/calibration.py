"""A sample of what each layer of a model is fed, taken while the model runs, in bounded memory, and kept as a file."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .checkpoint import CheckpointWriter, open_checkpoint
from .errors import CheckpointError
from .statistics import InputStatistics
from .text import shortened

METADATA_KEY = "calibrated_rounding_calibration"
ROWS = 2048
BUDGET = 2 << 30
"""Bytes of input rows kept for all layers together."""

CHUNK_ELEMENTS = 1 << 24
"""Input values looked at together: a recording needs little of the memory of the device that the model fills."""


@dataclass
class Reservoir:
    """A uniform sample of at most ``capacity`` of all rows seen, as the rows with the largest of random keys.

    Any prefix by key of such a sample is a uniform sample too, so the capacity may shrink at any time.
    """

    capacity: int
    generator: torch.Generator
    rows: Tensor
    keys: Tensor
    total: Tensor
    absmax: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, width: int, capacity: int, seed: int) -> Reservoir:
        generator = torch.Generator().manual_seed(seed)
        return cls(capacity, generator, torch.empty(0, width), torch.empty(0), torch.zeros(width, dtype=torch.float64))

    @property
    def nbytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def add(self, rows: Tensor) -> None:
        """Offer ``rows [R, K]`` on any device; only those that enter the sample are copied to the host.

        An error, as where memory does not suffice, leaves all as it was.
        """
        total, absmax = rows.sum(dim=0, dtype=torch.float32).cpu(), float(rows.abs().amax())
        keys = torch.rand(rows.shape[0], generator=self.generator)
        floor = float(self.keys[-1]) if len(self.keys) >= self.capacity else -1.0
        entering = torch.nonzero(keys > floor).flatten()
        kept = rows[entering.to(rows.device)].to("cpu", storage_dtype(rows.dtype))
        keys, order = torch.cat([self.keys, keys[entering]]).sort(descending=True)
        self.rows = torch.cat([self.rows.to(kept.dtype), kept])[order]
        self.keys = keys
        self.count += rows.shape[0]
        self.total += total
        self.absmax = max(self.absmax, absmax)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        self.capacity = capacity
        if len(self.keys) > capacity:
            self.keys, self.rows = self.keys[:capacity].clone(), self.rows[:capacity].clone()

    def statistics(self) -> InputStatistics:
        mean = (self.total / max(self.count, 1)).to(torch.float32)
        return InputStatistics(mean, self.absmax, self.rows, self.count)


@dataclass
class Collector:
    """Takes the inputs of layers as they come, and samples each uniformly over all calls.

    rows: at most so many a layer; fewer, for all layers alike, once they would take more than ``budget`` bytes. Layers
    that are fed the same tensor share a sample.
    """

    rows: int = ROWS
    budget: int = BUDGET
    seed: int = 0
    _reservoirs: dict[str, Reservoir] = field(default_factory=dict)
    _leaders: dict[str, str] = field(default_factory=dict)
    _last: tuple[Tensor, str] | None = None

    def add(self, layer: str, inputs: Tensor) -> None:
        """Offer one call's input ``[..., K]`` of ``layer``. Rows with NaN or infinite values are an error of the
        model's and are left out."""
        leader = self._last[1] if self._last is not None and self._last[0] is inputs else layer
        if self._leaders.setdefault(layer, leader) == leader != layer:
            return
        self._leaders[layer] = layer
        self._last = (inputs, layer)
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        for part in torch.split(rows, max(1, CHUNK_ELEMENTS // rows.shape[1])):
            self._sample(layer, part)
        self._fit_budget()

    def _sample(self, layer: str, rows: Tensor) -> None:
        finite = torch.isfinite(rows).all(dim=1)
        rows = rows if bool(finite.all()) else rows[finite]
        if rows.shape[0] == 0:
            return
        if layer not in self._reservoirs:
            seed = zlib.crc32(layer.encode()) ^ self.seed
            self._reservoirs[layer] = Reservoir.empty(rows.shape[1], self.rows, seed)
        self._reservoirs[layer].add(rows)

    def release(self) -> None:
        """Let go of the last input seen, which is held only to recognise layers that share it."""
        self._last = None

    @property
    def nbytes(self) -> int:
        return sum(reservoir.nbytes for reservoir in self._reservoirs.values())

    def finish(self, fingerprints: Mapping[str, str] | None = None) -> Calibration:
        self.release()
        samples = {layer: reservoir.statistics() for layer, reservoir in self._reservoirs.items()}
        shared = {layer: leader for layer, leader in self._leaders.items() if leader in samples}
        return Calibration(samples, shared, dict(fingerprints or {}))

    def _fit_budget(self) -> None:
        while self.nbytes > self.budget and self.rows > 1:
            self.rows //= 2
            for reservoir in self._reservoirs.values():
                reservoir.shrink(self.rows)


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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all. Raises CheckpointError if that is not possible."""
        tensors = self._tensors()
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with CheckpointWriter(path, layout, {METADATA_KEY: self._described()}) as writer:
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
                described = json.loads(checkpoint.metadata[METADATA_KEY])
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


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """Rows are kept in two bytes a value: what the model computes in, or bfloat16."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
