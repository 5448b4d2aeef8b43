"""The templates as the page draws them: every node in one frame, nothing over anything else."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from calibrated_rounding.tools.comfyui import PACK
from calibrated_rounding.tools.comfyui.browser import Site

TEMPLATES = sorted((PACK / "examples").glob("*.json"))

Frame = tuple[float, float, float, float]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem.split()[0])
def test_nothing_in_a_template_overlaps(site: Site, path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    site.call("loadGraph", workflow)
    site.wait("hasNodes", len(workflow["nodes"]))
    site.call("fitView")
    site.call("waitUntilNodesAreStill")
    note, *nodes = site.call("nodeFrames")
    groups = site.call("groupFrames")
    for one, other in combinations([note, *groups], 2):
        assert not overlap(one, other), "frames lie over each other"
    for one, other in combinations(nodes, 2):
        assert not overlap(one, other), "nodes lie over each other"
    for node in nodes:
        assert sum(contains(group, node) for group in groups) == 1, "a node sticks out of its frame"


def overlap(one: Frame, other: Frame) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def contains(outer: Frame, inner: Frame) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
