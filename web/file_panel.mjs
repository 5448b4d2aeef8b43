// What is known of the file that a node names (nodes/page/inspected.py): shown as soon as it is picked or dropped.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addBeside, choose } from "./beside.mjs";
import { h, tail } from "./dom.mjs";
import { describeDropped } from "./dropped.mjs";
import { linked } from "./graph.mjs";
import { failure, line } from "./notices.mjs";
import { markOverflow } from "./overflow.mjs";
import { legend } from "./palette.mjs";
import { button, cardButton } from "./saved.mjs";
import { bytes, text, whole } from "./text.mjs";

const RECIPE = "CalibratedRoundingLoadRecipe";

export class FilePanel {
  constructor(node) {
    Object.assign(this, { node, height: 240, file: null, state: null });
    this.words = h("div", { class: "calro-words", role: "status", tabindex: 0 });
    const style = `min-height: ${this.height}px`;
    markOverflow(this.words);
    this.element = h("div", { class: "calro calro-panel calro-text", style, "aria-label": text("panel") }, this.words);
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => this.#drop(event));
    this.#draw(null);
  }

  /** Called often: looks whether another file is picked. */
  look() {
    if (this.picked !== this.file) this.#ask((this.file = this.picked));
  }

  /** After a run: the server has looked again. */
  show(state) {
    this.state = state;
    if (state?.inspected) this.#draw(state.inspected);
    else if (state?.message) this.#draw({ notices: [failure(state.message)] });
  }

  remove() {}

  get widget() {
    return this.node.widgets?.find(({ name }) => name === "file");
  }

  /** The file that is picked; null if a link decides. */
  get picked() {
    return this.widget && !linked(this.node, "file") ? this.widget.value : null;
  }

  async #ask(file) {
    const ticket = (this.ticket = {});
    const answer = file && (await inspected(file).catch((error) => ({ notices: [failure(String(error))] })));
    if (ticket === this.ticket) this.#draw(answer);
  }

  /** A dropped file is looked for by its name and size: a page is never told where on the disk it lies. */
  async #drop(event) {
    const dropped = event.dataTransfer?.files?.[0];
    if (!dropped) return;
    event.preventDefault();
    event.stopPropagation();
    const ticket = (this.ticket = {}); // an answer about the picked file comes too late
    const choice = await findListed(this.widget.options?.values ?? [], dropped);
    if (ticket !== this.ticket) return;
    if (!choice) return this.#read(dropped);
    choose(this.node, "file", choice);
    this.file = null; // also if it was picked before: the panel may show another one
    this.look();
  }

  /** A file in no model folder, which only the page can read; shown until another one is picked or dropped. */
  async #read(dropped) {
    const ticket = (this.ticket = {});
    const { name } = dropped;
    this.file = this.picked;
    if (this.#takesRecipes) return this.#draw({ notices: [failure(text("file_not_listed", { file: name }))] });
    this.#draw(null, text("file_reading", { file: name }));
    const answer = await describeDropped(dropped).catch(({ message }) => ({ notices: [failure(message)] }));
    if (ticket === this.ticket) this.#draw({ ...answer, dropped: name });
  }

  /** The node takes the recipe of a file, which must be in a model folder. */
  get #takesRecipes() {
    return this.node.comfyClass === RECIPE;
  }

  #draw(found, hint = text("file_hint")) {
    this.element.dataset.phase = found ? "done" : "idle";
    const parts = found ? describe(found) : [h("p", {}, hint)];
    if (found?.recipe && !this.#takesRecipes) parts.push(this.#buttons(found));
    this.words.replaceChildren(...parts);
  }

  /** A recipe is loaded from a model folder, so that a workflow with it works again. */
  #buttons({ card, dropped }) {
    const { node, file } = this;
    const use = dropped ? null : button(text("use_settings"), text("use_settings_help"), () => addRecipe(node, file));
    return h("div", { class: "calro-buttons" }, use, cardButton(dropped ?? file, card));
  }
}

async function inspected(file) {
  const answer = await api.fetchApi(`/calibrated_rounding/inspect?file=${encodeURIComponent(file)}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** The choice that is a file with the same name and size. */
async function findListed(choices, { name, size }) {
  for (const choice of choices.filter((choice) => choice.split(/[\\/]/).at(-1) === name)) {
    const answer = await inspected(choice).catch(() => null);
    if (answer?.bytes === size) return choice;
  }
  return null;
}

/** dropped: the name of a file that no widget names. */
function describe({ title, bytes: size, formats = [], kept, recipe, made, notices, dropped }) {
  const name = dropped ? [h("div", { class: "calro-file" }, tail(dropped))] : [];
  const head = title ? [...name, row(h("b", {}, title), h("b", {}, bytes(size)))] : [];
  const layers = formats.map((format) =>
    row(legend(format.format), `${text("file_layers", { layers: whole(format.layers) })} · ${bytes(format.bytes)}`),
  );
  const rest = kept?.count ? [row(text("file_kept", { count: whole(kept.count) }), bytes(kept.bytes))] : [];
  return [...head, ...layers, ...rest, ...provenance(made, recipe), ...notices.map(line)];
}

const row = (left, right) => h("div", { class: "calro-file" }, h("span", {}, left), h("span", {}, right));

function provenance(made, recipe) {
  if (!made) return [];
  const source = made.source ? [text("file_source", { digest: made.source.slice(0, 12) })] : [];
  const settings = Object.entries(recipe).map(([name, value]) => `${name}: ${setting(value)}`);
  const words = [text("file_made", { version: made.version }), ...source].join(" · ");
  return [h("p", { title: made.source }, words), h("p", { class: "calro-settings" }, settings.join(", "))];
}

const setting = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));

/** A node that loads the recipe of the file, beside the node, and linked to the quantize nodes that are selected. */
function addRecipe(node, file) {
  const selected = Object.values(app.canvas.selected_nodes ?? {});
  const created = addBeside(node, RECIPE, (recipe) => {
    choose(recipe, "file", file);
    for (const other of selected) {
      const slot = (other.inputs ?? []).findIndex(({ name, type }) => name === "recipe" && type === "QUANT_RECIPE");
      if (slot >= 0) recipe.connect(0, other, slot);
    }
  });
  return created !== null;
}
