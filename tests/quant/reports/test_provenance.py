"""Provenance in a file's header."""

from __future__ import annotations

import json

from calibrated_rounding.quant import Recipe
from calibrated_rounding.quant.reports.provenance import PROVENANCE_KEY, Provenance


def test_merged_patches_survive_the_header() -> None:
    provenance = Provenance(recipe=Recipe().to_dict(), merged_patches=2, merged_first={"q.weight": ["lora 0.8"]})
    assert Provenance.from_metadata({PROVENANCE_KEY: provenance.to_json()}) == provenance


def test_damaged_list_of_patches_is_left_out() -> None:
    text = json.dumps({"version": "1", "recipe": {}, "merged_first": {"q.weight": 1, "k.weight": ["lora 1"]}})
    provenance = Provenance.from_metadata({PROVENANCE_KEY: text})
    assert provenance is not None and provenance.merged_first == {"k.weight": ["lora 1"]}
