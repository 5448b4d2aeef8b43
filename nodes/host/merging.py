"""Weight patches of a MODEL or CLIP, such as LoRAs: merged into its float weights before these are quantized.

ComfyUI applies a patch to a quantized layer by dequantizing and rounding it again, to nearest; calibrated codes are
lost. A patch that is merged first is quantized with the weight.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...quant import QuantError
from ...quant.calibration.calibration import Calibration
from ...quant.calibration.statistics import fingerprint
from ...quant.files.quantized import quantized_layers
from ...quant.files.sources import StateDictSource
from ...quant.files.tensors import WEIGHT
from ...quant.text import counted, shortened
from .weights import LoadedWeights


@dataclass(frozen=True)
class WeightPatches:
    """All patches of one weight, in the order in which ComfyUI applies them."""

    key: str
    """The weight's name in the whole model."""
    patches: list[Any]
    """Entries of ``ModelPatcher.patches[key]``."""

    def merge(self, weight: Tensor) -> Tensor:
        """Apply the patches to a copy of ``weight`` in float32, on the CPU."""
        # In inference mode, as ComfyUI calls it: tensors of LoRA files may be inference tensors.
        with torch.inference_mode():
            copy = weight.detach().to("cpu", torch.float32, copy=True)
            return comfy.lora.calculate_weight(self.patches, copy, self.key)

    def reshapes(self, weight: Tensor) -> bool:
        """Whether a patch gives the weight another shape, as LoRAs of some editing models do."""
        return comfy.lora.calculate_shape(self.patches, weight, self.key) != weight.shape

    def digest(self) -> str | None:
        """SHA-256 of the patches; None if they hold values of unknown kinds, such as functions."""
        digest = hashlib.sha256()
        return digest.hexdigest() if _add_to_digest(digest, self.patches) else None

    def describe(self) -> list[str]:
        """Kind and strength of each patch, such as ``lora 0.8``."""
        return [f"{_name_kind(value)} {strength:g}" for strength, value, *_ in self.patches]


Patches = Mapping[str, WeightPatches]
"""Name of a weight -> its patches."""


def find_patches(patcher: Any, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, WeightPatches]:
    """Find the patches of a part of a model.

    Args:
        patcher: Of the model.
        tensors: The part's tensors, named without ``prefix``.
        prefix: Of the part's names in the model.
    """
    return {
        name: WeightPatches(prefix + name, patcher.patches[prefix + name])
        for name in tensors
        if patcher.patches.get(prefix + name)
    }


def merge_on_read(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], patches: Patches) -> LoadedWeights:
    """Make a source of a model's weights that merges their patches when a weight is read.

    Args:
        tensors: The model's own tensors.
        dtypes: Dtypes of the tensors in the model's file.
        patches: To merge; empty: none.

    Raises:
        QuantError: if the weights are quantized, or a patch changes a weight's shape.
    """
    quantized = quantized_layers(StateDictSource(tensors)) if patches else {}
    if quantized:
        raise QuantError(
            f"This model is quantized, layer '{next(iter(quantized))}' first, and merge_loras needs float weights; "
            "load the float model, or switch merge_loras off."
        )
    reshaped = [name for name, found in patches.items() if found.reshapes(tensors[name])]
    if reshaped:
        raise QuantError(
            f"A patch changes the shape of {counted(len(reshaped), 'weight')} ({shortened(reshaped)}) and cannot be "
            "merged; switch merge_loras off, or remove the patch."
        )
    return LoadedWeights(tensors, dtypes, patches)


def refuse_other_patches(calibration: Calibration | None, patches: Patches) -> None:
    """Refuse a calibration that was recorded without the patches that are to be merged.

    Raises:
        QuantError: names the layers.
    """
    patched = [name.removesuffix(WEIGHT) for name in patches if name.endswith(WEIGHT)]
    layers = [layer for layer in patched if calibration is not None and layer in calibration]
    wrong = [layer for layer in layers if calibration and layer not in calibration.patched_fingerprints]
    if wrong:
        raise QuantError(
            f"The calibration was recorded without the LoRAs that merge_loras merges ({counted(len(wrong), 'layer')}: "
            f"{shortened(wrong)}); record it again with them, or switch merge_loras off."
        )


def fingerprint_patched(
    patcher: Any, tensors: Mapping[str, Tensor], prefix: str, dtypes: Mapping[str, torch.dtype]
) -> dict[str, str]:
    """The fingerprint of every patched two-dimensional weight with its patches merged, by layer.

    Weights whose patches cannot be merged have none. The arguments are as in `find_patches` and `merge_on_read`.
    """
    matrices = {name: t for name, t in tensors.items() if name.endswith(WEIGHT) and t.dim() == 2}
    found = find_patches(patcher, matrices, prefix)
    patches = {name: patched for name, patched in found.items() if not patched.reshapes(tensors[name])}
    weights = merge_on_read(matrices, dtypes, patches)
    return {name.removesuffix(WEIGHT): fingerprint(weights.read(name)) for name in patches}


def drop_patches(patcher: Any, keys: Iterable[str]) -> Any:
    """Clone a patcher without the patches of some weights.

    Args:
        patcher: It keeps all its patches.
        keys: Names of the weights in the whole model.
    """
    dropped, clone = set(keys), patcher.clone()
    clone.patches = {key: patches for key, patches in clone.patches.items() if key not in dropped}
    clone.patches_uuid = uuid.uuid4()
    return clone


def _add_to_digest(digest: Any, value: Any) -> bool:
    """Add a patch or a part of it to a digest; False if its kind is unknown."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return True
    if value is None or isinstance(value, (bool, int, float, str)):
        digest.update(f"{value!r};".encode())
        return True
    if isinstance(value, (list, tuple)):
        digest.update(f"{len(value)};".encode())
        return all(_add_to_digest(digest, entry) for entry in value)
    if isinstance(value, WeightAdapterBase) and set(vars(value)) == {"loaded_keys", "weights"}:
        return _add_to_digest(digest, [type(value).__name__, value.weights])
    return False


def _name_kind(value: Any) -> str:
    """The kind of a patch: an adapter's name, such as ``lora``, or ``merge`` for another model's weight."""
    if isinstance(value, WeightAdapterBase):
        return str(value.name)
    if isinstance(value, list):
        return "merge"
    return str(value[0]) if len(value) > 1 else "diff"
