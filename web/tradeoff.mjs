// What every size would cost: a line through the best choices of formats, and the choice that was made.

import { Axes } from "./axes.mjs";
import { h, s } from "./dom.mjs";
import { Points } from "./points.mjs";
import { bytes, error, percent, text } from "./text.mjs";

export class Tradeoff {
  /** precision: {curve, chosen, by_outputs}, points {nbytes, error} (quant/planning/size_curve.py). before: the model's bytes. */
  /** aim(nbytes): make a size the target of the next run; null where the settings are out of reach. */
  constructor({ curve, chosen, by_outputs: byOutputs }, before, aim) {
    Object.assign(this, { curve, chosen, before, target: null });
    const others = curve.filter(({ nbytes, error }) => nbytes !== chosen.nbytes || error !== chosen.error);
    this.all = [...others, chosen].sort((a, b) => a.nbytes - b.nbytes);
    this.measure = text("together", { error: text(`error_${byOutputs ? "output_w8a8" : "weight"}`) });
    this.points = new Points({
      title: text("tradeoff"),
      help: [text("tradeoff_help"), this.#said(chosen), ...(aim ? [text("tradeoff_aim")] : [])].join(" "),
      hint: this.#said(chosen),
      said: (point) => this.#said(point),
      chosen: (point) => this.points.mark(point),
      taken: (point) => aim && this.#aim(aim, point),
      draw: (width) => this.#draw(width),
      kind: "calro-tradeoff",
    });
    this.element = this.points.element;
    if (aim) this.element.append(h("div", { class: "calro-aim" }, text("tradeoff_aim")));
  }

  #aim(aim, point) {
    aim(point.nbytes);
    this.target = point;
    this.#draw(this.points.width);
  }

  #draw(width) {
    const [sizes, errors] = ["nbytes", "error"].map((key) => this.all.map((point) => point[key]));
    const axes = new Axes(width, sizes, errors);
    const place = (point) => [axes.x(point.nbytes), axes.y(point.error)];
    const line = s("polyline", { points: this.curve.map(place).join(" ") });
    const points = new Map(this.all.map((point) => [point, this.#point(point, place(point))]));
    const names = [
      named(`${text("chosen")}: ${bytes(this.chosen.nbytes)}`, place(this.chosen), width),
      ...(this.target ? [named(`${text("next_run")}: ${bytes(this.target.nbytes)}`, place(this.target), width)] : []),
    ];
    this.points.show([...axes.drawn(text("axis_size"), this.measure), line, ...names.slice(-1)], points);
  }

  #point(point, [x, y]) {
    const kind = point === this.target ? "calro-target" : point === this.chosen && "calro-choice";
    return { x, y, circle: s("circle", { cx: x, cy: y, r: kind ? 6 : 2.5, class: kind }) };
  }

  #said(point) {
    const share = percent(point.nbytes / (this.before || 1));
    const words = `${bytes(point.nbytes)} (${share}) · ${error(point.error)}`;
    if (point === this.target) return `${text("next_run")}: ${words}`;
    return point === this.chosen ? `${text("chosen")}: ${words}` : words;
  }
}

/** The label stands on the side where there is room. */
function named(label, [x, y], width) {
  const right = x < width / 2;
  const anchor = right ? "start" : "end";
  return s("text", { x: x + (right ? 10 : -10), y: y - 9, "text-anchor": anchor, class: "calro-chosen" }, label);
}
