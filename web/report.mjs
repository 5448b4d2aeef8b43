// The full report: totals, size against error of the layers and of the whole, a table of the layers, what was kept and
// why, and the files to take away.

import { Chart } from "./chart.mjs";
import { dialog, h, tail } from "./dom.mjs";
import { PAIRS, toDecibels, verdict } from "./errors.mjs";
import { download, toCsv, toJson } from "./export.mjs";
import { sentence } from "./notices.mjs";
import { legend } from "./palette.mjs";
import { Table } from "./table.mjs";
import { bytes, change, decibels, duration, error, keptLayers, percent, portion, text, whole } from "./text.mjs";
import { Tradeoff } from "./tradeoff.mjs";

const pairs = (layers, name) => layers.map((layer) => layer.errors[name]).filter((pair) => pair != null);
const optional = (shown) => (value) => (value == null ? "–" : shown(value));
const last = (value) => (value == null ? -Infinity : value);

const numeric = (key, shown, { figure = (row) => row[key], ...more } = {}) => ({
  key,
  number: true,
  given: () => true,
  value: (row) => last(figure(row)),
  shown: (row) => optional(shown)(figure(row)),
  ...more,
  kind: `calro-number ${more.kind ?? ""}`,
});

/** An error, and nearest's beside it if rounding made a difference in some layer. */
const measured = (name, more = {}, beside = more) => [
  numeric(name, error, {
    label: `error_${name}`,
    about: `about_${name}`,
    figure: ({ errors }) => errors[name]?.error,
    given: (layers) => pairs(layers, name).length > 0,
    ...more,
  }),
  numeric("nearest", error, {
    about: "about_nearest",
    figure: ({ errors }) => errors[name]?.nearest,
    given: (layers) => pairs(layers, name).some((pair) => pair.error !== pair.nearest),
    ...beside,
  }),
];
const worded = (key, words, more = {}) => ({ key, given: () => true, value: words, shown: words, ...more });

const notes = (layer) => layer.notes.map(sentence).join("; ");
const shape = (row) => row.shape.join(" × ");
const LESS = { kind: "calro-less" }; // left out where there is little room

const COLUMNS = [
  worded("name", (layer) => layer.name, {
    shown: (layer) => tail(layer.name, `${layer.name}\n${layer.reason}`),
  }),
  numeric("shape", String, { value: (layer) => layer.shape[0] * layer.shape[1], shown: shape }),
  worded("format", (layer) => layer.format, { shown: (layer) => legend(layer.format) }),
  numeric("bytes_before", bytes, LESS),
  numeric("bytes_after", bytes),
  ...measured("weight", {}, LESS),
  numeric("decibels", decibels, {
    about: "about_decibels",
    figure: ({ errors }) => toDecibels(errors.weight.error),
    ...LESS,
  }),
  ...measured("output_w8a16"),
  ...measured("output_w8a8"),
  ...measured("projected", LESS),
  numeric("effect", portion, {
    kind: "calro-effect",
    about: "about_effect",
    given: (layers) => layers.some(({ effect }) => effect != null),
  }),
  numeric("seconds", duration, { figure: ({ errors }) => errors.seconds }),
  worded("notes", notes, {
    given: (layers) => layers.some(notes),
    shown: (layer) => h("span", { title: notes(layer) }, notes(layer)),
    kind: "calro-notes",
  }),
];

const KEPT = [
  worded("name", (kept) => kept.name),
  worded("shape", shape),
  worded("dtype", (kept) => kept.dtype),
  numeric("bytes_after", bytes),
  worded("reason", ({ reason, source }) => (source ? `${reason} (${source})` : reason), { kind: "calro-wide" }),
];

/**
 * Show a report (runs.mjs) in a dialog over the page; `title` is the node's. aim(nbytes): make a size the node's target,
 * null where that cannot be.
 */
export function openReport(report, title, aim = null) {
  const view = new View(report, aim);
  const made = [title, report.recipe.format, report.recipe.rounding].join(" · ");
  dialog("", text("report"), made, ...view.parts);
}

class View {
  constructor(report, aim) {
    this.aim = aim;
    this.report = { ...report, layers: withShares(report.layers) };
    this.columns = COLUMNS.filter((column) => column.given(report.layers)).map(named);
    this.table = new Table(this.columns, (layer) => this.#mark(layer));
    this.chart = new Chart((layer) => this.#mark(layer));
    this.count = h("span", { class: "calro-count", role: "status" });
    this.search = h("input", { type: "search", placeholder: text("search"), "aria-label": text("search") });
    this.format = choice(text("format"), [["", text("all_formats")], ...formats(report).map((name) => [name, name])]);
    this.measure = choice(
      text("measure"),
      measures(report).map((key) => [key, text(`error_${key}`)]),
    );
    this.search.addEventListener("input", () => this.#filter());
    this.format.addEventListener("change", () => this.#filter());
    this.measure.addEventListener("change", () => this.#chart());
    this.parts = [tiles(report), this.#charts(), this.#tools(report), this.#layers(), ...more(report)];
    this.#chart();
    this.#filter();
  }

  #charts() {
    const { precision, totals } = this.report;
    const tradeoff = precision && new Tradeoff(precision, totals.bytes_before, this.aim);
    return h("div", { class: "calro-charts" }, this.chart.element, tradeoff?.element);
  }

  #tools(report) {
    const name = `quantization_${report.profile}_${report.recipe.format}`.replace(/[^\w.-]+/g, "_");
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
      file("CSV", "text/csv", () => toCsv(report.layers)),
      file("JSON", "application/json", () => toJson(report)),
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

/** The layers with `effect` as a share of all layers' effect on the model's output. */
function withShares(layers) {
  const total = layers.reduce((sum, { effect }) => sum + (effect ?? 0), 0);
  return layers.map((layer) => ({ ...layer, effect: total && layer.effect != null ? layer.effect / total : null }));
}

const named = ({ key, label = `column_${key}`, about, ...column }) => ({
  ...column,
  key,
  label: text(label),
  about: about && text(about),
});
const words = (layer) => `${layer.name} ${layer.format} ${notes(layer)}`.toLowerCase();
const formats = ({ layers }) => [...new Set(layers.map((layer) => layer.format))];
const measures = ({ layers }) => PAIRS.filter((name) => pairs(layers, name).length);

function choice(label, options) {
  return h("select", { "aria-label": label }, ...options.map(([value, shown]) => h("option", { value }, shown)));
}

function tiles({ totals, seconds, title }) {
  const ratio = percent(totals.bytes_after / (totals.bytes_before || 1));
  const shown = [
    [text("size"), change(totals.bytes_before, totals.bytes_after), ratio],
    ...PAIRS.flatMap((name) => against(totals, name)),
    [text("layers"), whole(totals.layers)],
    [text("kept_layers"), keptLayers(totals)],
    [text("others"), bytes(totals.other_bytes)],
    [text("time"), duration(seconds)],
    [text("profile"), title],
    ...(totals.fell_back ? [[text("fell_back"), whole(totals.fell_back)]] : []),
  ];
  return h(
    "dl",
    { class: "calro-tiles" },
    ...shown.map(([label, value, beside]) => h("div", {}, h("dt", {}, label), h("dd", {}, value, small(beside)))),
  );
}

const small = (words) => words && h("small", {}, words);

/** A mean error, beside nearest's if rounding made a difference; only the error that judges is judged in words. */
function against(totals, name) {
  const pair = totals[name];
  if (pair == null) return [];
  const words = verdict(pair);
  const nearest = text("with_nearest", { error: error(pair.nearest) });
  const beside = words && (name === "output_w8a8" ? `${words} (${error(pair.nearest)})` : nearest);
  return [[text(`error_${name}`), error(pair.error), beside]];
}

/** What is folded away: the tensors that were kept or dropped, and the notes with the recipe. */
function more({ kept, removed, notes: noted, recipe, versions, from_disk: fromDisk }) {
  const sentences = [...(fromDisk ? [text("notice_from_disk")] : []), ...noted.map(sentence)];
  const lines = sentences.map((words) => h("p", {}, words));
  const made = h("pre", {}, JSON.stringify({ recipe, versions }, null, 1));
  const dropped = Object.entries(removed).map(([name, reason]) => h("p", {}, `${name}: ${reason}`));
  return [
    folded(`${text("kept")}: ${text("tensors", { count: whole(kept.length) })}`, () => {
      const table = new Table(KEPT.map(named), () => {});
      table.show([...kept].sort((a, b) => b.bytes_after - a.bytes_after));
      return [table.element];
    }),
    ...(dropped.length ? [folded(`${text("removed")}: ${whole(dropped.length)}`, () => dropped)] : []),
    folded(text("how"), () => [...lines, made]),
  ];
}

/** Filled when it is opened first; there is room for one that is open. */
function folded(title, content) {
  const place = h("div", { class: "calro-folded" });
  const fill = () => place.childElementCount || place.append(...content());
  return h("details", { name: "calro-folded", ontoggle: fill }, h("summary", {}, title), place);
}
