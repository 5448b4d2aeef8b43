"""ComfyUI's page in a browser, used as a user would: nodes from the search box, links and buttons with the mouse."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calibrated_rounding.tests.comfyui.harness import PACK_NAME, Server

NODE = "window.app.graph.getNodeById(id)"
PANEL = f"{NODE}?.widgets.find((widget) => widget.name === 'calibrated_rounding')?.element"
PLACES = [(120, 160), (480, 160), (960, 160), (960, 400), (120, 400)]
"""Where nodes are put, in the graph's coordinates; the graph is not scaled."""

EMPTY = (300, 850)
"""A place on the canvas, in pixels, where no node lies."""

SHOWN = f"""(id) => {{
  const panel = {PANEL};
  if (!panel) return {{ phase: "absent", title: "", facts: "", remarks: "", words: "", bars: 0 }};
  return {{
    phase: panel.dataset.phase,
    title: panel.querySelector(".calro-head")?.innerText ?? "",
    facts: panel.querySelector(".calro-facts")?.innerText ?? "",
    remarks: panel.querySelector(".calro-remarks")?.innerText ?? "",
    words: panel.querySelector(".calro-words")?.innerText ?? "",
    bars: (panel.querySelector("svg")?.innerHTML.match(/M/g) ?? []).length,
    height: panel.offsetHeight,
    place: panel.offsetTop,
    node: {NODE}.size[1],
  }};
}}"""

CLIENT = """([id, side, name]) => {
  const node = window.app.graph.getNodeById(id);
  const slots = side === "in" ? node.inputs : node.outputs;
  const slot = slots.findIndex((entry) => entry.name === name);
  const place = side === "in" ? node.getInputPos(slot) : node.getOutputPos(slot);
  const box = window.app.canvas.canvas.getBoundingClientRect();
  const [x, y] = window.app.canvas.convertOffsetToCanvas([place[0], place[1]]);
  return [x + box.left, y + box.top];
}"""


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
        self.page.wait_for_timeout(1500)
        if not self.page.evaluate("() => window.app.graph.nodes.length"):
            self.page.evaluate("(graph) => window.app.loadGraphData(graph)", graph)

    def load(self) -> None:
        self.page.goto(self.server.url)
        self.wait("() => window.app?.extensionManager?.setting && window.app.canvas?.graph")
        self.page.keyboard.press("Escape")

    def add(self, title: str) -> int:
        """A node from the search box, where the next place is."""
        count = self.page.evaluate("() => window.app.graph.nodes.length")
        self._open_search()
        self.page.keyboard.type(title, delay=15)
        self.page.get_by_text(title).first.wait_for()
        self.page.wait_for_timeout(500)  # the list settles after the last letter
        self.page.keyboard.press("Enter")
        self.wait(f"() => window.app.graph.nodes.length === {count + 1}")
        self._put_down()
        script = (
            "([x, y]) => { const node = window.app.graph.nodes.at(-1); node.pos = [x, y]; return Number(node.id); }"
        )
        return int(self.page.evaluate(script, PLACES[count]))

    def link(self, source: int, output: str, target: int, name: str) -> None:
        """Draw a link with the mouse."""
        self.page.wait_for_timeout(300)
        start = self.page.evaluate(CLIENT, [source, "out", output])
        end = self.page.evaluate(CLIENT, [target, "in", name])
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=8)
        self.page.mouse.up()
        linked = f"""([id, name]) => {{
          const node = {NODE};
          return node.isInputConnected(node.inputs.findIndex((input) => input.name === name));
        }}"""
        self.wait(linked, [target, name])

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
        self.page.evaluate(f"([id, width]) => {NODE}.setSize([width, {NODE}.size[1]])", [node, width])
        self.page.wait_for_timeout(600)

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

    def panel(self, node: int) -> Any:
        """A panel as playwright's handle of its element."""
        return self.page.evaluate_handle(f"(id) => {PANEL}", node).as_element()

    def wait(self, condition: str, *arguments: Any) -> None:
        self.page.wait_for_function(condition, arg=arguments[0] if arguments else None, timeout=60_000)

    def shot(self, name: str) -> None:
        self.shots.mkdir(exist_ok=True)
        self.page.screenshot(path=str(self.shots / f"{next(self._shot)}_{name}.png"))

    def _open_search(self) -> None:
        """A double click, again while the page does not listen yet."""
        for _ in range(20):
            self.page.mouse.dblclick(*EMPTY)
            self.page.wait_for_timeout(800)
            if self.page.evaluate("() => document.activeElement.tagName") == "INPUT":
                return
        raise AssertionError("The search box does not open.")

    def _put_down(self) -> None:
        """A node from the search box hangs at the pointer until the next click."""
        for step in range(20):
            self.page.mouse.move(EMPTY[0] + step, EMPTY[1])
            self.page.mouse.click(EMPTY[0] + step, EMPTY[1])
            self.page.wait_for_timeout(200)
            if not self.page.evaluate("() => Boolean(window.app.graph.nodes.at(-1).flags?.ghost)"):
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
