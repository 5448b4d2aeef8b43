"""ComfyUI's page as a user works with it: nodes from the library or by search, links and buttons with the mouse."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .tab import CALL, Tab

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

PLACES = [(120, 160), (480, 160), (960, 160), (960, 580), (120, 400)]
"""Places of the nodes in the graph, in the order in which they are made; the side bar hides the first column."""

EMPTY = (300, 850)
"""A place on the canvas, in pixels, without a node."""

Point = tuple[float, float]

Panel = dict[str, Any]
"""Texts and sizes of a node's panel; `readPanel` in page.js reads them."""


def launch(playwright: Any) -> Any:
    """Start Debian's Chromium without its requests to other servers."""
    return playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))


class Site(Tab):
    """ComfyUI's page in a tab, used as a user would."""

    def drag(self, title: str) -> int:
        """Drag a node from the node library in the side bar to the next place; returns its id."""
        count = self.call("countNodes")
        library = self.page.get_by_role("button", name="Node Library")
        library.click()
        self.wait("isTyping")
        self.page.keyboard.type(title)
        self.page.get_by_role("treeitem").filter(has_text=re.compile(rf"^\s*{title}\s*$")).hover()
        self.page.mouse.down()
        self.page.mouse.move(*self.call("toPage", PLACES[count]), steps=12)
        self.screenshot("dragged")
        self.page.mouse.up()
        self.wait("hasNodes", count + 1)
        library.click()
        node = self.call("lastNode")
        assert math.dist(node["place"], PLACES[count]) < 50, "a node must lie where it was dropped"
        return int(node["id"])

    def add(self, title: str, place: Point | None = None) -> int:
        """Add a node from the search box at a place, by default the next one; returns its id."""
        count = self.call("countNodes")
        pointer = self._open_search(place)
        self.page.keyboard.type(title, delay=15)
        self.wait("offersNode", title)
        self.page.keyboard.press("Enter")
        self.wait("hasNodes", count + 1)
        self._put_down(pointer)
        self.call("placeLastNode", place or PLACES[count])
        return int(self.call("lastNode")["id"])

    def drop_workflow(self, workflow: Mapping[str, Any]) -> None:
        """Drop a file with a workflow onto the canvas."""
        self.call("dropFile", "workflow.json", "application/json", json.dumps(workflow))
        self.wait("hasNodes", len(workflow["nodes"]))

    def search(self, words: str) -> None:
        """Type into the search box for nodes."""
        self._open_search()
        self.page.keyboard.type(words, delay=15)

    def replace_search(self, words: str) -> None:
        """Type other words into the search box that is open."""
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(words, delay=15)

    def link(self, source: int, output: str, target: int, name: str) -> None:
        """Draw a link with the mouse, again while the nodes are still moving."""
        for _ in range(10):
            self._draw(self.call("outputPlace", source, output), self.call("inputPlace", target, name))
            if self.becomes_true("isConnected", target, name):
                return
            self.page.keyboard.press("Escape")
        raise AssertionError(f"The link to {name} cannot be drawn.")

    def choose(self, node: int, name: str, value: str) -> None:
        """Choose a value of a combo widget with the mouse."""
        if self.nodes2:
            label = re.compile(rf"(^|\.){name.rpartition('.')[2]}$")
            self.page.locator(f'[data-node-id="{node}"]').get_by_role("combobox", name=label).click()
            self.page.get_by_role("option", name=value, exact=True).click()
        else:
            self._click_widget_until("menuIsOpen", node, name)
            entry = re.compile(rf"^\s*{re.escape(value)}\s*$")
            self.page.locator(".litecontextmenu .litemenu-entry").filter(has_text=entry).click()
        self.wait("widgetIs", node, name, value)

    def type_number(self, node: int, name: str, digits: str) -> None:
        """Type a value into a number widget."""
        if self.nodes2:
            field = self.number_field(node, name)
            field.fill(digits)
            field.press("Enter")
        else:
            self._click_widget_until("isTyping", node, name)
            self.page.keyboard.press("Control+A")
            self.page.keyboard.type(digits)
            self.page.keyboard.press("Enter")

    def number_field(self, node: int, name: str) -> Any:
        """Playwright's locator of the field of a number widget in Nodes 2.0."""
        numbers: list[str] = self.call("numberWidgets", node)
        return self.page.locator(f'[data-node-id="{node}"] input[role=spinbutton]').nth(numbers.index(name))

    def create(self, kind: str) -> int:
        """Create a node by its type, without the search box; returns its id."""
        return int(self.call("createNode", kind, PLACES[self.call("countNodes") % len(PLACES)]))

    def connect(self, source: int, output: str, target: int, name: str) -> None:
        """Connect two nodes without the mouse."""
        self.call("connect", source, output, target, name)

    def resize(self, node: int, width: int) -> None:
        self.call("setWidth", node, width)
        self.wait("panelIsNarrower", node, width)
        self.wait_until_still(self.panel(node))

    def set(self, node: int, **values: Any) -> None:
        """Set widgets, in order; two underscores in a name stand for a dot."""
        for name, value in values.items():
            self.call("setWidget", node, name.replace("__", "."), value)

    def set_slow_rounding(self, node: int, iterations: int) -> None:
        """Select learned rounding, which takes a while, with a seed that no cache has."""
        seed = random.randrange(2**31)
        if self.call("widgetValue", node, "format") == "recommended":  # which would decide the rounding
            self.set(node, format="int8_convrot")
        self.set(node, rounding="svd", rounding__optimizer__iterations=iterations, rounding__random_seed=seed)

    def queue(self) -> None:
        self.call("queue")

    def press(self, name: str) -> None:
        """Press a button of the page."""
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def read_panel(self, node: int) -> Panel:
        panel: Panel = self.call("readPanel", node)
        return panel

    def watch(self, node: int, until: Callable[[Panel], bool], seconds: float = 120) -> list[Panel]:
        """Collect everything that a panel shows until a condition holds for it."""
        seen = [self.read_panel(node)]
        for _ in range(int(seconds / 0.05)):
            if until(seen[-1]):
                return seen
            self.page.wait_for_timeout(50)
            panel = self.read_panel(node)
            if panel != seen[-1]:
                seen.append(panel)
        raise AssertionError(f"Node {node} did not come to that; it showed {seen[-1]}.")

    def watch_until(self, node: int, phase: str) -> list[Panel]:
        """`watch` until a panel shows a phase: idle, running, done, interrupted, failed."""
        return self.watch(node, lambda panel: panel["phase"] == phase)

    def open_report(self, node: int) -> Any:
        """Open a node's full report with the keyboard; returns the dialog."""
        self.panel(node).query_selector(".calro-buttons button").focus()
        self.page.keyboard.press("Enter")
        dialog = self.page.locator("dialog.calro-report")
        dialog.locator("circle").first.wait_for()
        self.wait_until_still(dialog)
        return dialog

    def panel(self, node: int) -> Any:
        """Playwright's handle of a panel."""
        return self.page.evaluate_handle(CALL, ["panel", [node]]).as_element()

    def panel_button(self, node: int, label: str) -> None:
        """Press a button of a panel; on the canvas the panel may lie below others."""
        self.page.wait_for_function("([panel, label]) => window.packPage.pressIn(panel, label)", arg=[node, label])

    def _draw(self, start: Point, end: Point) -> None:
        self.page.mouse.move(*self.call("toPage", start))
        self.page.mouse.down()
        self.page.mouse.move(*self.call("toPage", end), steps=8)
        self.page.mouse.up()

    def _click_widget_until(self, opened: str, node: int, name: str) -> None:
        """Click a widget on the canvas, again while the canvas does not listen yet; ``opened`` is of page.js."""
        for _ in range(10):
            self._click_widget(node, name)
            if self.becomes_true(opened):
                return
        raise AssertionError(f"The widget {name} does not open.")

    def _click_widget(self, node: int, name: str) -> None:
        """Click a widget on the canvas."""
        self.wait("isDrawn", node, name)
        place = self.call("toPage", self.call("widgetPlace", node, name))
        self.page.mouse.move(place[0] + 4, place[1])  # the canvas learns by it what is under the pointer
        self.page.mouse.click(*place)

    def _open_search(self, place: Point | None = None) -> Point:
        """Double-click, again while the page does not listen yet; returns where, in pixels."""
        for _ in range(20):
            pointer = self.call("toPage", place) if place else EMPTY
            self.page.mouse.dblclick(*pointer)
            if self.becomes_true("isTyping"):
                return pointer
        raise AssertionError(f"The search box does not open at {pointer}: {self.call('whatIsAt', pointer)}.")

    def _put_down(self, pointer: Point) -> None:
        """Click until the node from the search box no longer follows the pointer."""
        for step in range(20):
            self.page.mouse.move(pointer[0] + step, pointer[1])
            self.page.mouse.click(pointer[0] + step, pointer[1])
            if self.becomes_true("lastNodeIsPlaced"):
                return
        raise AssertionError("The node cannot be put down.")
