// What the pack's other nodes say when they have run: the path of a file, the size of a calibration, a table of figures.

import { h } from "./dom.mjs";
import { line, merge } from "./notices.mjs";
import { markOverflow } from "./overflow.mjs";
import { fileLines } from "./saved.mjs";
import { secondsLeft, stage } from "./runs.mjs";
import { openSlider } from "./slider.mjs";
import { duration, text, whole } from "./text.mjs";

const PHASES = { idle: "nothing_yet", rounded: "finishing" }; // words of phases that are called otherwise
const HEIGHTS = { words: 64, files: 88, table: 132 };

export class TextPanel {
  /** kind: one of HEIGHTS. node: whose panel it is. */
  constructor(kind, node) {
    Object.assign(this, { kind, node });
    this.height = HEIGHTS[kind];
    const style = `min-height: ${this.height}px`;
    const figures = kind === "table" && "calro-figures";
    this.words = h("div", { class: ["calro-words", figures].filter(Boolean).join(" "), role: "status", tabindex: 0 });
    markOverflow(this.words);
    this.element = h("div", { class: "calro calro-panel calro-text", style, "aria-label": text("panel") }, this.words);
    this.notices = [];
    this.show(null);
  }

  show(state) {
    this.state = state;
    this.#draw();
  }

  /** What is known before the run. */
  showCheck(check) {
    const notices = check?.notices ?? [];
    if (JSON.stringify(notices) === JSON.stringify(this.notices)) return;
    this.notices = notices;
    this.#draw();
  }

  remove() {}

  #draw() {
    const phase = this.state?.phase ?? "idle";
    this.element.dataset.phase = phase;
    const notices = merge(this.state?.notices, this.notices).map(line);
    const results = phase === "idle" && notices.length ? [] : this.#results(phase);
    // Of a comparison, the verdict stands first.
    this.words.replaceChildren(...(this.kind === "table" ? [...notices, ...results] : [...results, ...notices]));
  }

  #comparing() {
    const open = () => openSlider(this.state.images, this.node.title);
    const compare = h("button", { type: "button", title: text("compare_help"), onclick: open }, text("compare_pictures"));
    return h("div", { class: "calro-buttons" }, compare);
  }

  /** Of a node that quantizes: what it does, how far it is, and the time left. */
  #progress() {
    const { run } = this.state;
    const done = text("done_of", { done: whole(run.done), total: whole(run.total) });
    const left = secondsLeft(run);
    const more = left == null ? [] : [`${text("time_left")}: ${duration(left)}`];
    return [`${text(stage(run))}: ${done}`, ...more].join(" · ");
  }

  #results(phase) {
    const { files, more, text: words, message } = this.state ?? {};
    if (files?.length) return [...fileLines(files, this.node), ...(more ? [h("p", {}, more)] : [])];
    const said = words ?? (phase === "running" ? this.#progress() : text(PHASES[phase] ?? phase));
    const shown = [h("p", {}, [said, message].filter(Boolean).join("\n"))];
    return this.state?.images?.length ? [this.#comparing(), ...shown] : shown;
  }
}
