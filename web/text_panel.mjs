// What the pack's other nodes say when they have run: the path of a file, the size of a calibration, a table of figures.

import { h } from "./dom.mjs";
import { remark } from "./panel.mjs";
import { text } from "./text.mjs";

export class TextPanel {
  constructor(table = false) {
    this.height = table ? 132 : 64;
    this.words = h("div", { class: table ? "calro-words calro-figures" : "calro-words", role: "status", tabindex: 0 });
    this.element = h("div", { class: "calro calro-panel calro-text", "aria-label": text("panel") }, this.words);
    this.remarks = [];
    this.show(null);
  }

  show(state) {
    this.state = state;
    this.#draw();
  }

  /** What is known before the run; a result takes its place. */
  showCheck(check) {
    const remarks = check?.remarks ?? [];
    if (JSON.stringify(remarks) === JSON.stringify(this.remarks)) return;
    this.remarks = remarks;
    this.#draw();
  }

  remove() {}

  #draw() {
    const phase = this.state?.phase ?? "idle";
    const said = this.state?.text ?? (phase === "idle" ? text("nothing_yet") : text(phase));
    const shown = [said, this.state?.message].filter(Boolean).join("\n");
    this.element.dataset.phase = phase;
    this.words.replaceChildren(...this.remarks.map(remark), h("p", {}, shown));
  }
}
