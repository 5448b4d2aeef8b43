"""Provenance (how a file was made): every path writes it into the header; inspection and the recipe loader read it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..bounded_json import parse_json
from ..errors import RecipeError
from ..files.header import MAX_HEADER_BYTES
from ..formats import find_needs
from ..formats.marker import HEADER_KEY, Marker, to_header
from ..recipe import Recipe
from ..version import VERSION
from .measurement import Measurement

PROVENANCE_KEY = "calibrated_rounding"
"""The header's text field."""

_FIELD = re.compile(rb'(?<!\\)"' + PROVENANCE_KEY.encode() + rb'"\s*:')


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything needed to make a quantized file again from its source, bit for bit."""

    recipe: Mapping[str, Any]
    """`Recipe.to_dict`."""
    source_sha256: str | None = None
    """Of the source file, hexadecimal; None: the source was a loaded model."""
    merged_patches: int = 0
    """Patches, such as LoRAs, merged into the file when it was saved."""
    merged_first: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Weight -> the patches that were merged into it before it was quantized, such as ``lora 0.8``."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """What loads each format in the file, by its name in markers, where ComfyUI 0.27 is not enough."""
    measurement: Measurement | None = None
    """How close the model was to its source before patches were merged at saving; None: unknown."""
    version: str = field(default=VERSION)
    """Of this pack."""

    def to_json(self) -> str:
        fields: dict[str, Any] = {"version": self.version, "recipe": dict(self.recipe)}
        if self.source_sha256 is not None:
            fields["source_sha256"] = self.source_sha256
        if self.merged_patches:
            fields["merged_patches"] = self.merged_patches
        if self.merged_first:
            fields["merged_first"] = {weight: list(patches) for weight, patches in self.merged_first.items()}
        if self.needs:
            fields["needs"] = dict(self.needs)
        if self.measurement is not None:
            fields["measurement"] = self.measurement.to_dict()
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Provenance | None:
        """The provenance in a header's text fields; None if this pack did not write it, or it cannot be read."""
        try:
            fields = parse_json(metadata.get(PROVENANCE_KEY, "null"))
        except ValueError:
            return None
        if not isinstance(fields, dict) or not isinstance(fields.get("recipe"), dict):
            return None
        digest, patches, needs = fields.get("source_sha256"), fields.get("merged_patches", 0), fields.get("needs")
        return cls(
            recipe=fields["recipe"],
            source_sha256=digest if isinstance(digest, str) else None,
            merged_patches=patches if type(patches) is int else 0,
            merged_first=_read_lists(fields.get("merged_first")),
            needs={str(name): str(text) for name, text in needs.items()} if isinstance(needs, dict) else {},
            measurement=Measurement.from_dict(fields.get("measurement")),
            version=str(fields.get("version")),
        )

    def list_settings(self) -> dict[str, Any]:
        """The recipe's settings that differ from the defaults, and always format and rounding."""
        defaults, always = Recipe().to_dict(), ("format", "rounding")
        return {k: v for k, v in self.recipe.items() if k in always or v != defaults.get(k)}

    def load_recipe(self) -> Recipe:
        """The recipe as a value.

        Raises:
            RecipeError: this version of the pack does not know a setting.
        """
        return Recipe.from_dict(dict(self.recipe))


def _read_lists(value: Any) -> dict[str, list[str]]:
    """A table of lists of texts; what is none of these is left out."""
    table = value if isinstance(value, dict) else {}
    return {str(name): [str(text) for text in texts] for name, texts in table.items() if isinstance(texts, list)}


def holds_provenance(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file seems to hold a provenance: a quick look at its header that checks nothing else."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= MAX_HEADER_BYTES and _FIELD.search(file.read(length)) is not None
    except OSError:
        return False


def read_recipe(metadata: Mapping[str, str], name: str) -> Recipe:
    """The recipe in the header of the file called ``name``.

    Raises:
        RecipeError: the header holds none.
    """
    provenance = Provenance.from_metadata(metadata)
    if provenance is None:
        raise RecipeError(f"The file '{name}' holds no recipe; it was not written by this pack.")
    return provenance.load_recipe()


def build_header(
    source: Mapping[str, str], markers: Mapping[str, Marker], provenance: Provenance | None, *, prefix: str = ""
) -> dict[str, str]:
    """The text fields of a quantized file's header.

    Args:
        source: the text fields of the source file, which are kept.
        markers: of every quantized layer, by full name.
        provenance: None if it is not known how the model was made; `Provenance.needs` is found from the markers.
        prefix: of the model's names. Under one the markers are left out of the header, as ComfyUI applies it again
            after it has stripped the prefix, and warns of every layer; the layers' own marker tensors are enough.
    """
    own = {} if prefix else {HEADER_KEY: to_header(markers)}
    if provenance is not None:
        needs = find_needs(marker.format for marker in markers.values())
        own[PROVENANCE_KEY] = replace(provenance, needs=needs).to_json()
    kept = {key: text for key, text in source.items() if key not in (HEADER_KEY, PROVENANCE_KEY)}
    return kept | own
