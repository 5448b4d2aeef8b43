// Size against error, a point for each layer. The pointer and the arrow keys go from point to point.

import { h, s } from "./dom.mjs";
import { color } from "./palette.mjs";
import { bytes, error, number, text } from "./text.mjs";

const HEIGHT = 230;
const EDGE = { left: 58, right: 14, top: 10, bottom: 34 };
const WIDE = 12; // a span of values beyond this ratio is drawn on a logarithmic scale
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
    this.x = scale(
      this.layers.map((layer) => layer.bytes_after),
      EDGE.left,
      width - EDGE.right,
    );
    this.y = scale(
      this.layers.map((layer) => layer[this.measure]),
      HEIGHT - EDGE.bottom,
      EDGE.top,
    );
    this.points = new Map(this.layers.map((layer) => [layer, this.#point(layer)]));
    const circles = Array.from(this.points.values(), ({ circle }) => circle);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.replaceChildren(...this.#axes(width), s("g", {}, ...circles));
    this.mark(this.marked);
    this.fade(this.faded);
  }

  #point(layer) {
    const [x, y] = [this.x(layer.bytes_after), this.y(layer[this.measure])];
    const circle = s("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 4.5, style: `fill: ${color(layer.format)}` });
    return { x, y, circle };
  }

  #axes(width) {
    const bottom = HEIGHT - EDGE.bottom;
    const across = this.y.ticks.map((value) => {
      const y = this.y(value);
      const line = s("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y });
      return s("g", {}, line, s("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, number(value)));
    });
    const down = this.x.ticks.map((value) =>
      s("text", { x: this.x(value), y: bottom + 15, "text-anchor": "middle" }, bytes(value)),
    );
    const names = [
      s("text", { x: width - EDGE.right, y: HEIGHT - 4, "text-anchor": "end", class: "calro-axis" }, text("axis_size")),
      s("text", { x: EDGE.left, y: HEIGHT - 4, class: "calro-axis" }, text(`axis_${this.measure}`)),
    ];
    return [...across, ...down, ...names];
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

/** value -> place between two edges, with `ticks`; logarithmic where the values, none negative, lie far apart. */
export function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const wide = low > 0 && high / low > WIDE;
  const room = (high - low || high || 1) / 6;
  const [start, end] = wide ? [low / 1.25, high * 1.25] : [Math.max(0, low - room), high + room];
  const bend = wide ? Math.log : (value) => value;
  const place = (value) => from + ((bend(value) - bend(start)) / (bend(end) - bend(start))) * (to - from);
  return Object.assign(place, { ticks: wide ? decades(start, end) : even(start, end) });
}

function even(start, end) {
  const rough = (end - start) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(start / step);
  return Array.from({ length: Math.floor(end / step) - first + 1 }, (_, i) => (first + i) * step);
}

function decades(start, end) {
  const first = Math.floor(Math.log10(start));
  const last = Math.ceil(Math.log10(end));
  const factors = last - first > 3 ? [1] : last - first > 2 ? [1, 3] : [1, 2, 5];
  const powers = Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
  return powers.flatMap((power) => factors.map((factor) => factor * power)).filter((v) => v >= start && v <= end);
}
