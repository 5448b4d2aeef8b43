// What the pack's other nodes say when they have run: the path of a file, the size of a calibration, a table of figures.

import { h } from "./dom.mjs";
import { line, merge } from "./notices.mjs";
import { text } from "./text.mjs";

export class TextPanel {
  constructor(table = false) {
    this.height = table ? 132 : 64;
    this.words = h("div", { class: table ? "calro-words calro-figures" : "calro-words", role: "status", tabindex: 0 });
    this.element = h("div", { class: "calro calro-panel calro-text", "aria-label": text("panel") }, this.words);
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
    const { files, notices, text: words, message } = this.state ?? {};
    const said = files?.join("\n") ?? words ?? text(phase === "idle" ? "nothing_yet" : phase);
    const shown = [said, message].filter(Boolean).join("\n");
    this.element.dataset.phase = phase;
    this.words.replaceChildren(...merge(notices, this.notices).map(line), h("p", {}, shown));
  }
}
