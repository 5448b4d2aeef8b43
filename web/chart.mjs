// Size against error, a point for each layer. The pointer and the arrow keys go from point to point.

import { Axes, HEIGHT } from "./axes.mjs";
import { h, s } from "./dom.mjs";
import { color } from "./palette.mjs";
import { bytes, error, text } from "./text.mjs";

const NEAR = 24; // pixels

export class Chart {
  /** measure: the key of the error that is drawn. chosen(layer) is called when the user goes to a point. */
  constructor(chosen) {
    Object.assign(this, { chosen, layers: [], measure: "error", marked: null, faded: () => false, points: new Map() });
    this.drawing = s("svg", {
      tabindex: 0,
      role: "application",
      "aria-label": text("chart_help"),
      height: HEIGHT,
      onpointermove: (event) => this.#say(this.#near(event)),
      onpointerleave: () => this.#say(null),
      onclick: (event) => this.#choose(this.#near(event)),
      onkeydown: (event) => this.#key(event),
    });
    this.words = h("div", { class: "calro-said", role: "status" });
    this.element = h("div", { class: "calro-chart" }, this.drawing, this.words);
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(layers, measure) {
    Object.assign(this, { layers: layers.filter((layer) => layer[measure] != null), measure });
    this.draw();
  }

  /** Draw the layers that `faded` tells faintly. */
  fade(faded) {
    this.faded = faded;
    this.points.forEach(({ circle }, layer) => circle.classList.toggle("calro-faded", faded(layer)));
  }

  mark(layer) {
    this.points.get(this.marked)?.circle.classList.remove("calro-marked");
    this.marked = layer;
    const point = this.points.get(layer);
    point?.circle.classList.add("calro-marked");
    point?.circle.parentNode.append(point.circle);
    this.#say(null);
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const [sizes, errors] = ["bytes_after", this.measure].map((key) => this.layers.map((layer) => layer[key]));
    this.axes = new Axes(width, sizes, errors);
    this.points = new Map(this.layers.map((layer) => [layer, this.#point(layer)]));
    const circles = Array.from(this.points.values(), ({ circle }) => circle);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const axes = this.axes.drawn(text("axis_size"), text(`axis_${this.measure}`));
    this.drawing.replaceChildren(...axes, s("g", {}, ...circles));
    this.mark(this.marked);
    this.fade(this.faded);
  }

  #point(layer) {
    const [x, y] = [this.axes.x(layer.bytes_after), this.axes.y(layer[this.measure])];
    const circle = s("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 4.5, style: `fill: ${color(layer.format)}` });
    return { x, y, circle };
  }

  #near(event) {
    const box = this.drawing.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = [NEAR, null];
    for (const [layer, point] of this.points) {
      const distance = Math.hypot(point.x - x, point.y - y);
      if (distance < best[0] && !this.faded(layer)) best = [distance, layer];
    }
    return best[1];
  }

  #choose(layer) {
    if (layer) this.chosen(layer);
  }

  #key(event) {
    const order = this.layers
      .filter((layer) => !this.faded(layer))
      .sort((a, b) => this.points.get(a).x - this.points.get(b).x || this.points.get(b).y - this.points.get(a).y);
    const here = order.indexOf(this.marked);
    const next = {
      ArrowRight: here + 1,
      ArrowLeft: here < 0 ? order.length - 1 : here - 1,
      Home: 0,
      End: order.length - 1,
    };
    if (!(event.key in next)) return;
    event.preventDefault();
    this.#choose(order[Math.max(0, Math.min(order.length - 1, next[event.key]))]);
  }

  #say(layer) {
    const named = layer ?? this.marked;
    const value = named && named[this.measure];
    this.words.textContent = named
      ? `${named.name} · ${named.format} · ${bytes(named.bytes_after)} · ${value == null ? "–" : error(value)}`
      : text("chart_hint");
  }
}
