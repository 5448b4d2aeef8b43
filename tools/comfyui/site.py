"""ComfyUI's page in a browser, used as a user would: nodes dragged or searched, links and buttons with the mouse."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .checkout import PACK_NAME
from .server import Server

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

NODE = "window.app.graph.getNodeById(id)"
PANEL = f"{NODE}?.widgets.find((widget) => widget.name === 'calibrated_rounding')?.element"
PLACES = [(120, 160), (480, 160), (960, 160), (960, 580), (120, 400)]
"""Where nodes are put, in the graph's coordinates; the graph is not scaled. The side bar hides the first column."""

CLIENT_PLACE = """([x, y]) => {
  const box = window.app.canvas.canvas.getBoundingClientRect();
  const [left, top] = window.app.canvas.convertOffsetToCanvas([x, y]);
  return [left + box.left, top + box.top];
}"""

STILL = """(element) => new Promise((done) => {
  let [before, same] = ["", 0];
  const look = () => {
    const now = JSON.stringify(element.getBoundingClientRect());
    same = now === before ? same + 1 : 0;
    before = now;
    same > 10 ? done() : requestAnimationFrame(look);
  };
  look();
})"""
"""Waits until an element has kept its place and size for some frames."""

EMPTY = (300, 850)
"""A place on the canvas, in pixels, where no node lies."""

SHOWN = f"""(id) => {{
  const panel = {PANEL};
  if (!panel) return {{ phase: "absent", title: "", facts: "", notices: "", words: "", bars: 0 }};
  return {{
    phase: panel.dataset.phase,
    title: panel.querySelector(".calro-head")?.innerText ?? "",
    facts: panel.querySelector(".calro-facts")?.innerText ?? "",
    notices: panel.querySelector(".calro-notices")?.innerText ?? "",
    words: panel.querySelector(".calro-words")?.innerText ?? "",
    bars: (panel.querySelector("svg")?.innerHTML.match(/M/g) ?? []).length,
    height: panel.offsetHeight,
    place: panel.offsetTop,
    node: {NODE}.size[1],
  }};
}}"""

SLOT = """([id, side, name]) => {
  const node = window.app.graph.getNodeById(id);
  const slots = side === "in" ? node.inputs : node.outputs;
  const slot = slots.findIndex((entry) => entry.name === name);
  const place = side === "in" ? node.getInputPos(slot) : node.getOutputPos(slot);
  return [place[0], place[1]];
}"""

WIDGET = """([id, name]) => {
  const node = window.app.graph.getNodeById(id);
  const { last_y: y } = node.widgets.find((widget) => widget.name === name);
  return [node.pos[0] + node.size[0] / 2, node.pos[1] + y + 10];
}"""


def launch(playwright: Any) -> Any:
    """Debian's Chromium, which asks nobody for anything."""
    return playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))


class Site:
    def __init__(self, server: Server, page: Any, shots: Path, nodes2: bool) -> None:
        self.server, self.page, self.shots, self.nodes2 = server, page, shots, nodes2
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        self._shot = itertools.count()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._blame(f"{error}\n{error.stack}"))
        page.on("request", self._see)

    def open(self, **settings: Any) -> None:
        """Load the page, with ComfyUI's settings as given, and begin an empty graph."""
        self.server.post(
            "/settings", {"Comfy.VueNodes.Enabled": self.nodes2, "Comfy.TutorialCompleted": True, **settings}
        )
        self.load()
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.wait("() => window.app.graph.nodes.length === 0")
        self.page.evaluate("() => Object.assign(window.app.canvas.ds, { scale: 1, offset: [0, 0] })")

    def reload(self) -> None:
        """Load the page again, with the graph as it is; ComfyUI may keep only what the mouse did."""
        graph = self.page.evaluate("() => window.app.graph.serialize()")
        self.load()
        if not self.came("() => window.app.graph.nodes.length", seconds=2):
            self.page.evaluate("(graph) => window.app.loadGraphData(graph)", graph)

    def load(self) -> None:
        self.page.goto(self.server.url)
        self.wait("() => window.app?.extensionManager?.setting && window.app.canvas?.graph")
        self.page.keyboard.press("Escape")

    def drag(self, title: str) -> int:
        """A node from the node library in the side bar, dragged with the mouse to where the next place is."""
        count = self.page.evaluate("() => window.app.graph.nodes.length")
        library = self.page.get_by_role("button", name="Node Library")
        library.click()
        self.wait("() => document.activeElement.tagName === 'INPUT'")
        self.page.keyboard.type(title)
        self.page.get_by_role("treeitem").filter(has_text=re.compile(rf"^\s*{title}\s*$")).hover()
        self.page.mouse.down()
        self.page.mouse.move(*self.client(PLACES[count]), steps=12)
        self.shot("dragged")
        self.page.mouse.up()
        self.wait(f"() => window.app.graph.nodes.length === {count + 1}")
        library.click()
        node, *place = self.page.evaluate(
            "() => [window.app.graph.nodes.at(-1)].flatMap(({ id, pos }) => [id, ...pos])"
        )
        assert math.dist(place, PLACES[count]) < 50, "a node must lie where it was dropped"
        return int(node)

    def add(self, title: str) -> int:
        """A node from the search box, where the next place is."""
        count = self.page.evaluate("() => window.app.graph.nodes.length")
        self._open_search()
        self.page.keyboard.type(title, delay=15)
        self.wait(
            "(title) => document.querySelector('[role=option]')?.innerText.trim().startsWith(title)",
            title,
        )
        self.page.keyboard.press("Enter")
        self.wait(f"() => window.app.graph.nodes.length === {count + 1}")
        self._put_down()
        script = (
            "([x, y]) => { const node = window.app.graph.nodes.at(-1); node.pos = [x, y]; return Number(node.id); }"
        )
        return int(self.page.evaluate(script, PLACES[count]))

    def link(self, source: int, output: str, target: int, name: str) -> None:
        """Draw a link with the mouse, again while the nodes have not come to rest."""
        linked = f"""([id, name]) => {{
          const node = {NODE};
          return node.isInputConnected(node.inputs.findIndex((input) => input.name === name));
        }}"""
        for _ in range(10):
            self._draw(
                self.page.evaluate(SLOT, [source, "out", output]), self.page.evaluate(SLOT, [target, "in", name])
            )
            if self.came(linked, [target, name]):
                return
            self.page.keyboard.press("Escape")
        raise AssertionError(f"The link to {name} cannot be drawn.")

    def choose(self, node: int, name: str, value: str) -> None:
        """Give a combo widget a value with the mouse."""
        if self.nodes2:
            label = re.compile(rf"(^|\.){name.rpartition('.')[2]}$")
            self.page.locator(f'[data-node-id="{node}"]').get_by_role("combobox", name=label).click()
            self.page.get_by_role("option", name=value, exact=True).click()
        else:
            self.page.mouse.click(*self.client(self.page.evaluate(WIDGET, [node, name])))
            entry = re.compile(rf"^\s*{re.escape(value)}\s*$")
            self.page.locator(".litecontextmenu .litemenu-entry").filter(has_text=entry).click()
        self.wait(
            f"([id, name, value]) => {NODE}.widgets.find((w) => w.name === name).value === value", [node, name, value]
        )

    def client(self, place: tuple[float, float]) -> tuple[float, float]:
        """Where a place of the graph is on the page, in pixels."""
        x, y = self.page.evaluate(CLIENT_PLACE, list(place))
        return x, y

    def create(self, kind: str) -> int:
        """A node by its type, without the search box."""
        count = self.page.evaluate("() => window.app.graph.nodes.length")
        script = """([kind, place]) => {
          const node = window.LiteGraph.createNode(kind);
          node.pos = place;
          window.app.graph.add(node);
          return Number(node.id);
        }"""
        return int(self.page.evaluate(script, [kind, PLACES[count]]))

    def connect(self, source: int, output: str, target: int, name: str) -> None:
        """A link without the mouse."""
        script = """([source, output, target, name]) => {
          const [from, to] = [source, target].map((id) => window.app.graph.getNodeById(id));
          const slots = [from.outputs, to.inputs];
          const [out, into] = [output, name].map((wanted, i) => slots[i].findIndex((slot) => slot.name === wanted));
          from.connect(out, to, into);
        }"""
        self.page.evaluate(script, [source, output, target, name])

    def resize(self, node: int, width: int) -> None:
        script = (
            f"([id, width]) => ({NODE}.setSize([width, {NODE}.size[1]]), window.app.graph.setDirtyCanvas(true, true))"
        )
        self.page.evaluate(script, [node, width])
        self.wait(f"([id, width]) => {PANEL}.offsetWidth < width && {PANEL}.offsetWidth > width - 60", [node, width])
        self.still(self.panel(node))

    def set(self, node: int, **values: Any) -> None:
        """Give widgets a value, in order; a dot in a name is written as two underscores."""
        script = f"""([id, name, value]) => {{
          const widget = {NODE}.widgets.find((entry) => entry.name === name);
          widget.value = value;
          widget.callback?.(value);
        }}"""
        for name, value in values.items():
            self.page.evaluate(script, [node, name.replace("__", "."), value])

    def learned(self, node: int, iterations: int) -> None:
        """Rounding that takes a while, and that no cache knows."""
        seed = random.randrange(2**31)
        self.set(node, rounding="svd", rounding__optimizer__iterations=iterations, rounding__random_seed=seed)

    def queue(self) -> None:
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.QueuePrompt')")

    def press(self, name: str) -> None:
        """A button of the page, by what it is called."""
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def shown(self, node: int) -> dict[str, Any]:
        """What a node's panel shows."""
        shown: dict[str, Any] = self.page.evaluate(SHOWN, node)
        return shown

    def watch(self, node: int, until: Callable[[dict[str, Any]], bool], seconds: float = 120) -> list[dict[str, Any]]:
        """Everything that a panel has shown until something is true of it."""
        seen = [self.shown(node)]
        for _ in range(int(seconds / 0.05)):
            if until(seen[-1]):
                return seen
            self.page.wait_for_timeout(50)
            now = self.shown(node)
            if now != seen[-1]:
                seen.append(now)
        raise AssertionError(f"Node {node} never came to that; it showed {seen[-1]}.")

    def until(self, node: int, phase: str) -> list[dict[str, Any]]:
        return self.watch(node, lambda shown: shown["phase"] == phase)

    def still(self, element: Any) -> None:
        element.evaluate(STILL)

    def report(self, node: int) -> Any:
        """Open a node's full report with the keyboard; gives the dialog."""
        self.panel(node).query_selector("button").focus()
        self.page.keyboard.press("Enter")
        dialog = self.page.locator("dialog.calro-report")
        dialog.locator("circle").first.wait_for()
        self.still(dialog)
        return dialog

    def panel(self, node: int) -> Any:
        """A panel as playwright's handle of its element."""
        return self.page.evaluate_handle(f"(id) => {PANEL}", node).as_element()

    def wait(self, condition: str, *arguments: Any) -> None:
        self.page.wait_for_function(condition, arg=arguments[0] if arguments else None, timeout=60_000)

    def came(self, condition: str, argument: Any = None, seconds: float = 1) -> bool:
        """Whether something has become true within some seconds."""
        from playwright.sync_api import TimeoutError as TooLate  # optional

        try:
            self.page.wait_for_function(condition, arg=argument, timeout=1000 * seconds)
        except TooLate:
            return False
        return True

    def heard(self, count: int) -> list[str]:
        """The pack's complaints, when there are so many."""
        for _ in range(200):
            if len(self.complaints) >= count:
                break
            self.page.wait_for_timeout(50)
        return list(self.complaints)

    def shot(self, name: str) -> None:
        self.shots.mkdir(exist_ok=True)
        self.page.screenshot(path=str(self.shots / f"{next(self._shot)}_{name}.png"))

    def _draw(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.client(start))
        self.page.mouse.down()
        self.page.mouse.move(*self.client(end), steps=8)
        self.page.mouse.up()

    def _open_search(self) -> None:
        """A double click, again while the page does not listen yet."""
        for _ in range(20):
            self.page.mouse.dblclick(*EMPTY)
            if self.came("() => document.activeElement.tagName === 'INPUT'"):
                return
        raise AssertionError("The search box does not open.")

    def _put_down(self) -> None:
        """A node from the search box hangs at the pointer until the next click."""
        for step in range(20):
            self.page.mouse.move(EMPTY[0] + step, EMPTY[1])
            self.page.mouse.click(EMPTY[0] + step, EMPTY[1])
            if self.came("() => !window.app.graph.nodes.at(-1).flags?.ghost"):
                return
        raise AssertionError("The node cannot be put down.")

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._blame(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _blame(self, text: str) -> None:
        """Keep what comes from the pack; ComfyUI's own page complains, too."""
        if f"/extensions/{PACK_NAME}/" in text or "calibrated" in text or "calro" in text:
            self.complaints.append(text)

    def _see(self, request: Any) -> None:
        script = request.headers.get("referer", "")
        own = urlsplit(request.url).netloc == urlsplit(self.server.url).netloc
        if not own and PACK_NAME in f"{request.url}{script}":
            self.strangers.append(request.url)
