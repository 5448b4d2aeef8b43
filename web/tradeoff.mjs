// What every size would cost: a line through the best choices of formats, and the choice that was made.

import { Axes, HEIGHT } from "./axes.mjs";
import { h, s } from "./dom.mjs";
import { bytes, error, text } from "./text.mjs";

const words = (point) => `${bytes(point.nbytes)} · ${error(point.error)}`;

export class Tradeoff {
  /** precision: {curve, chosen, by_outputs}, points {nbytes, error} (quant/precision.py). */
  constructor(precision) {
    this.precision = precision;
    this.label = `${text("chosen")}: ${words(precision.chosen)}`;
    const said = `${text("tradeoff")}. ${this.label}`;
    this.drawing = s("svg", { role: "img", "aria-label": said, height: HEIGHT });
    this.element = h("div", { class: "calro-chart calro-tradeoff" }, h("h3", {}, text("tradeoff")), this.drawing);
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const { curve, chosen, by_outputs: byOutputs } = this.precision;
    const all = [...curve, chosen];
    const [sizes, errors] = ["nbytes", "error"].map((key) => all.map((point) => point[key]));
    const axes = new Axes(width, sizes, errors);
    const place = (point) => [axes.x(point.nbytes), axes.y(point.error)];
    const line = s("polyline", { points: curve.map(place).join(" ") });
    const names = [text("axis_size"), text(byOutputs ? "axis_run_error" : "axis_error")];
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.replaceChildren(
      ...axes.drawn(...names),
      line,
      ...curve.map((point) => dot(point, place(point), 2.5)),
      dot(chosen, place(chosen), 6, "calro-marked"),
      this.#named(place(chosen), width),
    );
  }

  /** The label stands on the side where there is room. */
  #named([x, y], width) {
    const right = x < width / 2;
    const anchor = right ? "start" : "end";
    return s("text", { x: x + (right ? 10 : -10), y: y - 9, "text-anchor": anchor, class: "calro-chosen" }, this.label);
  }
}

function dot(point, [cx, cy], r, kind) {
  return s("circle", { cx, cy, r, class: kind }, s("title", {}, words(point)));
}
