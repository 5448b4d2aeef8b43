// Size against error, a point for each layer.

import { Axes } from "./axes.mjs";
import { s } from "./dom.mjs";
import { color } from "./palette.mjs";
import { Points } from "./points.mjs";
import { bytes, error, text } from "./text.mjs";

export class Chart {
  /** measure: the key of the error that is drawn. chosen(layer) is called when the user goes to a point. */
  constructor(chosen) {
    Object.assign(this, { layers: [], measure: "error" });
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

  show(layers, measure) {
    const order = (a, b) => a.bytes_after - b.bytes_after || a[measure] - b[measure];
    Object.assign(this, { layers: layers.filter((layer) => layer[measure] != null).sort(order), measure });
    if (this.points.width) this.#draw(this.points.width);
  }

  fade(faded) {
    this.points.fade(faded);
  }

  mark(layer) {
    this.points.mark(layer);
  }

  #draw(width) {
    const [sizes, errors] = ["bytes_after", this.measure].map((key) => this.layers.map((layer) => layer[key]));
    const axes = new Axes(width, sizes, errors);
    const points = new Map(this.layers.map((layer) => [layer, this.#point(axes, layer)]));
    this.points.show(axes.drawn(text("axis_size"), text(`axis_${this.measure}`)), points);
  }

  #point(axes, layer) {
    const [x, y] = [axes.x(layer.bytes_after), axes.y(layer[this.measure])];
    const circle = s("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 4.5, style: `fill: ${color(layer.format)}` });
    return { x, y, circle };
  }

  #said(layer) {
    const value = layer[this.measure];
    const figures = [layer.format, bytes(layer.bytes_after), value == null ? "–" : error(value)];
    return [layer.name, ...figures].join(" · ");
  }
}
