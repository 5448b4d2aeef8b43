// The axes that the charts share: sizes in bytes across, relative errors upwards.

import { s } from "./dom.mjs";
import { bytes, share } from "./text.mjs";

export const HEIGHT = 230;
const EDGE = { left: 50, right: 14, top: 26, bottom: 34 };
const WIDE = 12; // a span of values beyond this ratio is drawn on a logarithmic scale

/** x(bytes), y(error): places in a drawing of `width` and HEIGHT that has room for all of the values. */
export class Axes {
  constructor(width, sizes, errors) {
    this.right = width - EDGE.right;
    this.x = scale(sizes, EDGE.left, this.right);
    this.y = scale(errors, HEIGHT - EDGE.bottom, EDGE.top);
  }

  /** Lines, figures and the two names. */
  drawn(across, upwards) {
    const name = (x, y, anchor, words) => s("text", { x, y, "text-anchor": anchor, class: "calro-axis" }, words);
    const names = [name(this.right, HEIGHT - 4, "end", across), name(0, 11, "start", upwards)];
    return [this.#rule(HEIGHT - EDGE.bottom), ...this.y.ticks.map((v) => this.#line(v)), ...this.#sizes(), ...names];
  }

  #rule(y) {
    return s("line", { x1: EDGE.left, x2: this.right, y1: y, y2: y });
  }

  #line(value) {
    const y = this.y(value);
    return s("g", {}, this.#rule(y), s("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, share(value)));
  }

  #sizes() {
    const y = HEIGHT - EDGE.bottom + 15;
    return this.x.ticks.map((value) => s("text", { x: this.x(value), y, "text-anchor": "middle" }, bytes(value)));
  }
}

/** value -> place between two edges, with `ticks`; logarithmic where the values, none negative, lie far apart. */
function scale(values, from, to) {
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
