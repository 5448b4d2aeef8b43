"""Workflows in the format that ComfyUI's front end stores: places, frames, links and widgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from calibrated_rounding.tools.comfyui.workflows import NOTE

from example_graphs import Group, Node, Template

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")

TITLE_BAR, GAP, PADDING, GROUP_TITLE = 30, 30, 20, 44
"""In pixels: of a node; between nodes; between a frame and its nodes; the frame's title."""
NOTE_SIZE = (800, 150)
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}

Place = tuple[int, int]
Box = tuple[int, int, int, int]


def ui_format(template: Template, object_info: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """Convert a template to a workflow.

    Args:
        template: The nodes, in columns of groups, and the note.
        object_info: Returns ComfyUI's description of a type of node.
    """
    nodes, (places, frames) = template.nodes, arrange(template)
    ids = {key: number for number, key in enumerate(nodes, 2)}
    ui_nodes = {key: _ui_node(ids[key], places[key], node, object_info(node.type)) for key, node in nodes.items()}
    links: list[list[Any]] = []
    for key, node in nodes.items():
        for target, (source, slot) in node.links.items():
            slots = [entry["name"] for entry in ui_nodes[key]["inputs"]]
            output = ui_nodes[source]["outputs"][slot]
            links.append([len(links) + 1, ids[source], slot, ids[key], slots.index(target), output["type"]])
            ui_nodes[key]["inputs"][slots.index(target)]["link"] = len(links)
            output["links"].append(len(links))
    return {
        "revision": 0,
        "last_node_id": len(ids) + 1,
        "last_link_id": len(links),
        "nodes": [_note(template.note), *ui_nodes.values()],
        "links": links,
        "groups": [_frame(number, *frame) for number, frame in enumerate(frames, 1)],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def arrange(template: Template) -> tuple[dict[str, Place], list[tuple[Group, Box]]]:
    """Place the columns side by side below the note.

    Returns:
        The place of every node, and every group with its frame (left, top, width, height).
    """
    places: dict[str, Place] = {}
    frames: list[tuple[Group, Box]] = []
    left = 0
    for column in template.columns:
        top, width = NOTE_SIZE[1] + 2 * GAP, max(node.size[0] for group in column for node in group.nodes.values())
        for group in column:
            y = top + GROUP_TITLE
            for key, node in group.nodes.items():
                places[key] = (left + PADDING, y + TITLE_BAR)
                y += TITLE_BAR + node.size[1] + GAP
            frames.append((group, (left, top, width + 2 * PADDING, y - GAP + PADDING - top)))
            top = y + PADDING
        left += width + 2 * PADDING + GAP
    return places, frames


def _frame(number: int, group: Group, box: Box) -> dict[str, Any]:
    return {"id": number, "title": group.title, "bounding": box, "color": "#3f789e", "font_size": 24, "flags": {}}


def _note(text: str) -> dict[str, Any]:
    place = {"pos": (0, 0), "size": NOTE_SIZE, "flags": {}, "order": 0, "mode": 0}
    sockets = {"inputs": [], "outputs": [], "properties": {}, "widgets_values": [text]}
    return {"id": 1, "type": NOTE, **place, **sockets, "title": "About this template", **NOTE_COLOURS}


def _ui_node(number: int, place: Place, node: Node, info: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    sockets = [(name, spec[0]) for name, spec in inputs.items() if not _is_widget(spec[0])]
    widgets = [widget for name, spec in inputs.items() for widget in _widgets(name, spec, node.values)]
    result: dict[str, Any] = {"id": number, "type": node.type, "pos": place, "size": node.size, "flags": {}}
    result |= {"order": number - 1, "mode": 0}
    result["inputs"] = [
        *({"name": name, "type": kind, "link": None} for name, kind in sockets),
        *({"name": name, "type": kind, "widget": {"name": name}, "link": None} for name, kind, _ in widgets if kind),
    ]
    outputs = zip(info["output_name"], info["output"], strict=True)
    result["outputs"] = [{"name": name, "type": kind, "links": []} for name, kind in outputs]
    result |= {"properties": {"Node name for S&R": node.type}, "widgets_values": [value for *_, value in widgets]}
    return result | ({"title": node.title} if node.title else {})


def _is_widget(kind: object) -> bool:
    return isinstance(kind, list) or kind in WIDGETS


def _widgets(name: str, spec: list[Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    """Yield name, type and value of a widget and of the widgets that it brings; the seed's control has no type."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if not _is_widget(kind):
        return
    choices = kind if isinstance(kind, list) else options.get("options", [None])
    dynamic = kind == "COMFY_DYNAMICCOMBO_V3"
    value = values.get(name, options.get("default", choices[0]["key"] if dynamic else choices[0]))
    yield name, "COMBO" if isinstance(kind, list) else kind, value
    if options.get("control_after_generate"):
        yield "control_after_generate", None, values["control_after_generate"]
    if dynamic:
        chosen = next(choice["inputs"] for choice in choices if choice["key"] == value)
        for child, child_spec in {**chosen.get("required", {}), **chosen.get("optional", {})}.items():
            yield from _widgets(f"{name}.{child}", child_spec, values)
