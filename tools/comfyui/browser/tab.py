"""ComfyUI's page in one browser tab: loaded with settings, called, watched for complaints, and photographed.

The page's own side is page.js.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..checkout import PACK_NAME
from ..server import Server

SCRIPT = Path(__file__).with_name("page.js")
CALL = "([name, args]) => window.packPage[name](...args)"

THEMES = ("dark", "light")
"""Names of ComfyUI's colour palettes."""

SLOWEST_DOUBLE_CLICK = 1000
"""Milliseconds, the most that ComfyUI lets its users set: the page may be busy between two clicks."""

T = TypeVar("T")


class Tab:
    """ComfyUI's page in one browser tab.

    Args:
        server: The server of the page.
        page: Playwright's page.
        shots: Folder for screenshots.
        nodes2: Whether nodes are drawn by Nodes 2.0 and not on the canvas.
        theme: Name of ComfyUI's colour palette.
    """

    complaints: list[str]
    """The pack's errors and warnings in the console."""
    strangers: list[str]
    """Addresses on other servers that the pack has asked for."""

    def __init__(self, server: Server, page: Any, shots: Path, nodes2: bool, theme: str = THEMES[0]) -> None:
        self.server, self.page, self.shots, self.nodes2, self.theme = server, page, shots, nodes2, theme
        self.complaints, self.strangers = [], []
        self._shot = itertools.count()
        page.add_init_script(path=str(SCRIPT))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._blame(f"{error}\n{error.stack}"))
        page.on("request", self._see)

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of page.js."""
        return self.page.evaluate(CALL, [name, args])

    def wait(self, name: str, *args: Any) -> None:
        """Wait until a function of page.js returns something true."""
        self.page.wait_for_function(CALL, arg=[name, args], timeout=60_000)

    def becomes_true(self, name: str, *args: Any, seconds: float = 3) -> bool:
        """Wait some seconds; returns whether a function of page.js has returned something true."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeout  # optional

        try:
            self.page.wait_for_function(CALL, arg=[name, args], timeout=1000 * seconds)
        except PlaywrightTimeout:
            return False
        return True

    def expect(self, read: Callable[[], T], wanted: T, seconds: float = 30) -> None:
        """Wait until something that is read has the wanted value."""
        for _ in range(int(seconds / 0.05)):
            if read() == wanted:
                return
            self.page.wait_for_timeout(50)
        assert read() == wanted

    def open(self, **settings: Any) -> None:
        """Load the page with some of ComfyUI's settings, and begin an empty graph."""
        view = {"Comfy.VueNodes.Enabled": self.nodes2, "Comfy.ColorPalette": self.theme}
        slow = {"Comfy.Pointer.DoubleClickTime": SLOWEST_DOUBLE_CLICK}
        self.server.post("/settings", {"Comfy.TutorialCompleted": True, **slow, **view, **settings})
        self.load()
        self._clear_graph()
        self.set_view(0, 0)

    def reload(self) -> None:
        """Load the page again with the same graph.

        ComfyUI saves a graph some time after a change, and what a script changes perhaps never; so the graph that it
        loads may be older.
        """
        graph = self.call("serialize")
        self.load()
        if not self.call("holdsGraph", graph):
            self.call("loadGraph", graph)

    def set_view(self, left: float, top: float) -> None:
        """Show the graph in its own size, moved by some pixels.

        ComfyUI fits the view to a graph some time after it has loaded it, so the view is set until it stays.
        """
        for _ in range(20):
            self.call("setView", [left, top])
            if self.call("viewStays", [left, top]):
                return
        raise AssertionError("The view does not stay.")

    def load(self) -> None:
        self.page.goto(self.server.url)
        self.wait("isReady")
        self.page.keyboard.press("Escape")

    def wait_until_still(self, element: Any) -> None:
        """Wait until an element has stopped moving."""
        element.evaluate("(element) => window.packPage.waitUntilStill(element)")

    def wait_for_complaints(self, count: int) -> list[str]:
        """Wait until there are as many complaints; returns all of them."""
        for _ in range(200):
            if len(self.complaints) >= count:
                break
            self.page.wait_for_timeout(50)
        return list(self.complaints)

    def screenshot(self, name: str) -> None:
        self.shots.mkdir(exist_ok=True)
        self.page.screenshot(path=str(self.shots / f"{next(self._shot)}_{name}.png"))

    def _clear_graph(self) -> None:
        """Begin a new workflow, again if the page has loaded its own after it."""
        for _ in range(20):
            self.call("newWorkflow")
            if self.becomes_true("hasNodes", 0):
                return
        raise AssertionError("The graph does not become empty.")

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._blame(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _blame(self, text: str) -> None:
        """Keep complaints of the pack; ComfyUI's own page complains, too."""
        if f"/extensions/{PACK_NAME}/" in text or "calibrated" in text or "calro" in text:
            self.complaints.append(text)

    def _see(self, request: Any) -> None:
        referer = request.headers.get("referer", "")
        same_server = urlsplit(request.url).netloc == urlsplit(self.server.url).netloc
        if not same_server and PACK_NAME in f"{request.url}{referer}":
            self.strangers.append(request.url)
