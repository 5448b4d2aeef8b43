// The original under the quantized, large, with an edge between them that is dragged or moved by the arrow keys.
//
// A picture of Compare Models has three panels in a row below a line of labels (nodes/compare/pictures.py): reference,
// candidate, difference. Each layer here shows one of them.

import { api } from "../../scripts/api.js";
import { h } from "./dom.mjs";
import { text } from "./text.mjs";

const LABELS = 24; // pixels of the line of labels
const PANELS = { reference: 0, candidate: 1, difference: 2 };
const NAMES = { candidate: "compare_candidate", difference: "compare_difference" };

/** images: as ComfyUI's preview has them, {filename, subfolder, type}. */
export function openSlider(images, title) {
  document.querySelector("dialog.calro-slider")?.remove();
  const view = new Slider(images);
  const close = h("button", { type: "button", class: "calro-close", title: text("close"), onclick: () => dialog.close() }, "✕");
  const head = h("header", {}, h("h2", {}, text("compare_pictures")), h("span", {}, title), close);
  const dialog = h("dialog", { class: "calro calro-report calro-slider" }, head, view.element);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  view.edge.focus();
  return dialog;
}

class Slider {
  constructor(images) {
    Object.assign(this, { images, number: 0 });
    this.layers = ["candidate", "reference"].map((name) => h("div", { class: `calro-layer calro-${name}` }));
    const range = { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": text("compare_edge") };
    this.edge = h("input", { ...range, oninput: () => this.#move() });
    const names = ["compare_reference", "compare_candidate"].map((key) => h("span", {}, text(key)));
    this.stage = h("div", { class: "calro-stage" }, ...this.layers, h("i"), this.edge, ...names);
    this.other = h("select", { "aria-label": text("compare_against"), onchange: () => this.#draw() });
    const options = Object.entries(NAMES).map(([value, key]) => h("option", { value }, text(key)));
    this.other.append(...options);
    const turn = (step) => this.#turn(step);
    this.count = h("span", { role: "status" });
    const buttons = [this.#button("‹", -1, turn), this.count, this.#button("›", 1, turn), this.other];
    this.room = h("div", { class: "calro-room" }, this.stage);
    this.element = h("div", { class: "calro-slides" }, this.room, h("div", { class: "calro-tools" }, ...buttons));
    new ResizeObserver(() => this.#fit()).observe(this.room);
    this.#draw();
  }

  #button(sign, step, turn) {
    const title = text(step < 0 ? "compare_previous" : "compare_next");
    return h("button", { type: "button", title, disabled: this.images.length < 2, onclick: () => turn(step) }, sign);
  }

  #turn(step) {
    this.number = (this.number + step + this.images.length) % this.images.length;
    this.#draw();
  }

  /** The sizes are known when the picture has been loaded. */
  #draw() {
    const url = api.apiURL(`/view?${new URLSearchParams(this.images[this.number])}`);
    const picture = new Image();
    picture.onload = () => {
      const [width, height] = [picture.naturalWidth / 3, picture.naturalHeight - LABELS];
      this.ratio = width / height;
      this.#fit();
      const shown = [this.other.value, "reference"];
      this.layers.forEach((layer, i) => {
        const size = `300% ${(100 * picture.naturalHeight) / height}%`;
        const place = `${50 * PANELS[shown[i]]}% 100%`;
        layer.style.background = `url("${url}") ${place} / ${size} no-repeat`;
      });
    };
    picture.src = url;
    this.stage.lastChild.textContent = text(NAMES[this.other.value]);
    this.count.textContent = text("done_of", { done: this.number + 1, total: this.images.length });
    this.#move();
  }

  /** As large as fits. */
  #fit() {
    const { clientWidth, clientHeight } = this.room;
    const width = Math.min(clientWidth, clientHeight * (this.ratio ?? 1));
    Object.assign(this.stage.style, { width: `${width}px`, height: `${width / (this.ratio ?? 1)}px` });
  }

  /** The reference lies above, cut off at the edge. */
  #move() {
    this.stage.style.setProperty("--calro-edge", `${this.edge.value}%`);
  }
}
