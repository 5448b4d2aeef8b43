// Size against error, a point for each layer.

import { Axes } from "./axes.mjs";
import { s } from "./dom.mjs";
import { color } from "./palette.mjs";
import { Points } from "./points.mjs";
import { bytes, error, text } from "./text.mjs";

export class Chart {
  /** chosen(layer) is called when the user goes to a point. */
  constructor(chosen) {
    Object.assign(this, { layers: [], measure: "weight" });
    this.points = new Points({
      title: text("layers_chart"),
      help: text("chart_help"),
      hint: text("chart_hint"),
      said: (layer) => this.#said(layer),
      chosen,
      draw: (width) => this.#draw(width),
    });
    this.element = this.points.element;
  }

  /** measure: the pair of `errors` whose error is drawn. */
  show(layers, measure) {
    this.measure = measure;
    const order = (a, b) => a.bytes_after - b.bytes_after || this.#error(a) - this.#error(b);
    this.layers = layers.filter((layer) => this.#error(layer) != null).sort(order);
    if (this.points.width) this.#draw(this.points.width);
  }

  fade(faded) {
    this.points.fade(faded);
  }

  mark(layer) {
    this.points.mark(layer);
  }

  #error(layer) {
    return layer.errors[this.measure]?.error;
  }

  #draw(width) {
    const [sizes, errors] = [this.layers.map((layer) => layer.bytes_after), this.layers.map((l) => this.#error(l))];
    const axes = new Axes(width, sizes, errors);
    const points = new Map(this.layers.map((layer) => [layer, this.#point(axes, layer)]));
    this.points.show(axes.drawn(text("axis_size"), text(`error_${this.measure}`)), points);
  }

  #point(axes, layer) {
    const [x, y] = [axes.x(layer.bytes_after), axes.y(this.#error(layer))];
    const circle = s("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 4.5, style: `fill: ${color(layer.format)}` });
    return { x, y, circle };
  }

  #said(layer) {
    const value = this.#error(layer);
    const figures = [layer.format, bytes(layer.bytes_after), value == null ? "–" : error(value)];
    return [layer.name, ...figures].join(" · ");
  }
}
