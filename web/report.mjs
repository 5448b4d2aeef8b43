// The full report: totals, size against error of the layers and of the whole, a table of the layers, what was kept and
// why, and the files to take away.

import { Chart } from "./chart.mjs";
import { h } from "./dom.mjs";
import { download, toCsv, toJson } from "./export.mjs";
import { legend } from "./palette.mjs";
import { Table } from "./table.mjs";
import { bytes, change, decibels, duration, error, percent, text, whole } from "./text.mjs";
import { Tradeoff } from "./tradeoff.mjs";

const has = (key) => (layers) => layers.some((layer) => layer[key] != null);
const optional = (shown) => (value) => (value == null ? "–" : shown(value));
const last = (value) => (value == null ? -Infinity : value);

const numeric = (key, shown, given = () => true) => ({
  key,
  number: true,
  given,
  value: (layer) => last(layer[key]),
  shown: (layer) => optional(shown)(layer[key]),
});
const worded = (key, words, shown = words) => ({ key, given: () => true, value: words, shown });

const notes = (layer) => [...layer.notes, ...(layer.given_back ? [text("given_back")] : [])].join("; ");
const shape = (row) => row.shape.join(" × ");

const COLUMNS = [
  worded("name", (layer) => layer.name),
  { ...numeric("shape", String), value: (layer) => layer.shape[0] * layer.shape[1], shown: shape },
  worded(
    "format",
    (layer) => layer.format,
    (layer) => legend(layer.format),
  ),
  numeric("bytes_before", bytes),
  numeric("bytes_after", bytes),
  numeric("error", error),
  numeric("sqnr_db", decibels),
  numeric("output_error", error, has("output_error")),
  numeric("output_nearest", error, has("output_nearest")),
  numeric("run_error", error, has("run_error")),
  numeric("run_nearest", error, has("run_nearest")),
  numeric("projected_error", error, has("projected_error")),
  numeric("projected_nearest", error, has("projected_nearest")),
  numeric("seconds", duration),
  worded("notes", notes),
];

const KEPT = [
  worded("name", (kept) => kept.name),
  worded("shape", shape),
  worded("dtype", (kept) => kept.dtype),
  numeric("bytes_after", bytes),
  worded("reason", (kept) => kept.reason),
];

/** Show a report (runs.mjs) in a dialog over the page; `title` is the node's. */
export function openReport(report, title) {
  const dialog = h("dialog", { class: "calro calro-report", "aria-label": `${text("report")}: ${title}` });
  const view = new View(report);
  const close = h("button", { type: "button", class: "calro-close", "aria-label": text("close") }, "✕");
  close.addEventListener("click", () => dialog.close());
  dialog.append(h("header", {}, h("h2", {}, text("report")), h("span", {}, title), close), ...view.parts);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  // The page's own shortcuts stay out of what is typed here.
  for (const name of ["keydown", "keyup", "keypress", "wheel", "paste", "copy"]) {
    dialog.addEventListener(name, (event) => event.stopPropagation());
  }
  document.body.append(dialog);
  dialog.showModal();
  view.chart.draw();
}

class View {
  constructor(report) {
    this.report = report;
    this.columns = COLUMNS.filter((column) => column.given(report.layers)).map(named);
    this.table = new Table(this.columns, (layer) => this.#mark(layer));
    this.chart = new Chart((layer) => this.#mark(layer));
    this.count = h("span", { class: "calro-count", role: "status" });
    this.search = h("input", { type: "search", placeholder: text("search"), "aria-label": text("search") });
    this.format = choice(text("format"), [["", text("all_formats")], ...formats(report).map((name) => [name, name])]);
    this.measure = choice(
      text("measure"),
      measures(report).map((key) => [key, text(`axis_${key}`)]),
    );
    this.search.addEventListener("input", () => this.#filter());
    this.format.addEventListener("change", () => this.#filter());
    this.measure.addEventListener("change", () => this.#chart());
    this.parts = [tiles(report), this.#charts(), this.#tools(), this.#layers(), ...more(report)];
    this.#chart();
    this.#filter();
  }

  #charts() {
    const { precision } = this.report;
    return h("div", { class: "calro-charts" }, this.chart.element, precision ? new Tradeoff(precision).element : null);
  }

  #tools() {
    const name = `quantization_${this.report.profile}_${this.report.recipe.format}`.replace(/[^\w.-]+/g, "_");
    const file = (label, type, content) =>
      h(
        "button",
        { type: "button", onclick: () => download(`${name}.${label.toLowerCase()}`, type, content()) },
        label,
      );
    return h(
      "div",
      { class: "calro-tools" },
      ...[this.search, this.format, this.measure, this.count],
      file("CSV", "text/csv", () => toCsv(this.report.layers)),
      file("JSON", "application/json", () => toJson(this.report)),
    );
  }

  #layers() {
    return h("div", { class: "calro-layers", tabindex: -1 }, this.table.element);
  }

  #chart() {
    this.chart.show(this.report.layers, this.measure.value);
  }

  #filter() {
    const [wanted, format] = [this.search.value.toLowerCase(), this.format.value];
    const fits = (layer) => (!format || layer.format === format) && words(layer).includes(wanted);
    const shown = this.report.layers.filter(fits);
    this.table.show(shown);
    this.chart.fade((layer) => !fits(layer));
    this.count.textContent = text("done_of", { done: whole(shown.length), total: whole(this.report.layers.length) });
  }

  #mark(layer) {
    this.table.mark(layer);
    this.chart.mark(layer);
  }
}

const named = (column) => ({ ...column, label: text(`column_${column.key}`) });
const words = (layer) => `${layer.name} ${layer.format} ${notes(layer)}`.toLowerCase();
const formats = ({ layers }) => [...new Set(layers.map((layer) => layer.format))];
const measures = ({ layers }) => ["error", "output_error", "run_error"].filter((key) => has(key)(layers));

function choice(label, options) {
  return h("select", { "aria-label": label }, ...options.map(([value, shown]) => h("option", { value }, shown)));
}

function tiles({ totals, seconds, layers, kept, profile }) {
  const size = change(totals.bytes_before, totals.bytes_after);
  const shown = [
    [text("size"), `${size} (${percent(totals.bytes_after / (totals.bytes_before || 1))})`],
    [text("error"), error(totals.mean_error)],
    [text("layers"), whole(layers.length)],
    [text("kept"), whole(kept.length)],
    [text("time"), duration(seconds)],
    [text("profile"), profile],
    ...(totals.given_back ? [[text("given_back"), whole(totals.given_back)]] : []),
  ];
  return h(
    "dl",
    { class: "calro-tiles" },
    ...shown.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))),
  );
}

/** What is folded away: the tensors that were kept or dropped, and the notes with the recipe. */
function more({ kept, removed, notes: remarks, recipe, versions, from_disk: fromDisk }) {
  const lines = [...(fromDisk ? [text("from_disk")] : []), ...remarks].map((line) => h("p", {}, line));
  const made = h("pre", {}, JSON.stringify({ recipe, versions }, null, 1));
  const dropped = Object.entries(removed).map(([name, reason]) => h("p", {}, `${name}: ${reason}`));
  return [
    folded(`${text("kept")}: ${whole(kept.length)}`, () => {
      const table = new Table(KEPT.map(named), () => {});
      table.show(kept);
      return [table.element];
    }),
    ...(dropped.length ? [folded(`${text("removed")}: ${whole(dropped.length)}`, () => dropped)] : []),
    folded(text("how"), () => [...lines, made]),
  ];
}

/** Filled when it is opened first. */
function folded(title, content) {
  const place = h("div", { class: "calro-folded" });
  const fill = () => place.childElementCount || place.append(...content());
  return h("details", { ontoggle: fill }, h("summary", {}, title), place);
}
