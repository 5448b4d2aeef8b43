// The strip of bars in the node: one for each layer, as high as its error, coloured by its format.

import { h, s } from "./dom.mjs";
import { primaryError } from "./errors.mjs";
import { color } from "./palette.mjs";
import { error, text } from "./text.mjs";

const MOST = 160; // bars; of more layers, several share one, which shows the worst
const HEIGHT = 1000; // of the highest bar in the drawing's own units

export class Strip {
  constructor() {
    this.drawing = s("svg", { preserveAspectRatio: "none", "aria-hidden": true });
    this.element = h("div", { class: "calro-strip", onpointermove: (event) => this.#name(event) }, this.drawing);
    this.show([], 0);
  }

  /** layers: finished layers, {name, format, errors}; total: how many there will be. */
  show(layers, total) {
    this.bars = bars(layers, total);
    this.count = Math.min(Math.max(total, 1), MOST);
    this.drawing.setAttribute("viewBox", `0 ${-HEIGHT} ${this.count} ${HEIGHT}`);
    this.drawing.replaceChildren(...paths(this.bars));
  }

  #name(event) {
    const box = this.element.getBoundingClientRect();
    const layer = this.bars[Math.floor(((event.clientX - box.left) / box.width) * this.count)];
    this.element.title = layer ? `${layer.name}\n${layer.format}, ${described(layer)}` : "";
  }
}

/** The error that a bar is as high as, by its name. */
const described = ({ errors }) => {
  const name = errors.output_w8a8 ? "output_w8a8" : "weight";
  return `${text(`error_${name}`)} ${error(errors[name].error)}`;
};

/** The layer with the largest error of each bar; of bars whose layers are not done, nothing. */
export function bars(layers, total) {
  const count = Math.min(total, MOST);
  const worst = [];
  layers.forEach((layer, i) => {
    const place = Math.floor((i * count) / total);
    if (!worst[place] || primaryError(layer) > primaryError(worst[place])) worst[place] = layer;
  });
  return worst;
}

function paths(bars) {
  const highest = Math.max(...bars.map(primaryError), Number.MIN_VALUE);
  const gap = bars.length < 80 ? 0.15 : 0.05;
  const drawn = {};
  bars.forEach((layer, i) => {
    const height = Math.max((primaryError(layer) / highest) * HEIGHT, HEIGHT / 25).toFixed(1);
    drawn[layer.format] = `${drawn[layer.format] ?? ""}M${i + gap} 0v-${height}h${1 - 2 * gap}v${height}z`;
  });
  return Object.entries(drawn).map(([format, d]) => s("path", { d, style: `fill: ${color(format)}` }));
}
