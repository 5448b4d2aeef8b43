// What a quantize node shows of its run: before, while it goes on, and afterwards. Every line keeps its place and height.

import { h, tail } from "./dom.mjs";
import { primaryError } from "./errors.mjs";
import { failure, line, merge } from "./notices.mjs";
import { legend } from "./palette.mjs";
import { secondsLeft } from "./runs.mjs";
import { Strip } from "./strip.mjs";
import { bytes, change, duration, error, percent, text, whole } from "./text.mjs";

const TICK = 1000;

export class Panel {
  /** openReport(report) and turnAdvanced() are called by the buttons. */
  constructor(openReport, turnAdvanced) {
    this.height = 223;
    this.strip = new Strip();
    this.bar = h("div", { class: "calro-bar" }, h("i"));
    [this.head, this.facts, this.notices] = ["head", "facts", "notices"].map((name) =>
      h("div", { class: `calro-${name}` }),
    );
    this.said = h("span", { class: "calro-unseen", role: "status" });
    this.button = button(text("full_report"), () => openReport(this.state.report));
    const advanced = button(text("advanced"), turnAdvanced, { class: "calro-advanced" });
    const buttons = h("div", { class: "calro-buttons" }, this.button, advanced);
    const body = h("div", { class: "calro-body" }, this.facts, this.notices);
    const parts = [this.head, this.strip.element, this.bar, body, buttons, this.said];
    this.element = h("div", { class: "calro calro-panel", role: "group", "aria-label": text("panel") }, ...parts);
    this.state = { phase: "idle", layers: [] };
    this.check = null;
    this.#draw();
  }

  show(state) {
    this.state = state ?? { phase: "idle", layers: [] };
    this.#later();
  }

  /** What the server says before the run, null where it says nothing. */
  showCheck(check) {
    this.check = check;
    this.#later();
  }

  remove() {
    clearInterval(this.timer);
  }

  #later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#draw();
    });
  }

  #draw() {
    const { phase, layers, run, report } = this.state;
    const view = VIEWS[phase](this.state, this.check);
    this.element.dataset.phase = phase;
    this.head.replaceChildren(h("b", {}, view.title), ...(view.detail ? [tail(view.detail)] : []));
    this.facts.replaceChildren(...view.facts.map(fact));
    this.strip.show(layers, Math.max(run?.total ?? 0, layers.length));
    this.bar.firstChild.style.width = `${100 * (view.share ?? 0)}%`;
    this.notices.replaceChildren(...this.#notices());
    this.button.disabled = !report;
    if (this.said.textContent !== view.title) this.said.textContent = view.title;
    this.#tick(phase === "running");
  }

  /** While nothing comes from the server, the time left still goes down. */
  #tick(on) {
    if (on && !this.timer) this.timer = setInterval(() => this.#draw(), TICK);
    if (!on && this.timer) this.timer = clearInterval(this.timer);
  }

  #notices() {
    const { phase, message, report } = this.state;
    const before = this.check?.notices ?? [];
    const failed = phase === "failed";
    // The error that made the run fail takes the place of errors that would.
    const notices = failed
      ? [failure(message), ...before.filter(({ level }) => level !== "error")]
      : merge(report?.notices, report?.notes, before);
    const file = report?.file ? [tail(report.file)] : [];
    if (file.length + notices.length) return [...file, ...notices.map(line)];
    if (phase === "idle" && !this.check?.plan) return [h("p", {}, text("hint"))];
    const formats = new Set(this.state.layers.map((layer) => layer.format));
    return [...(formats.size ? formats : (this.check?.plan?.formats ?? []))].map(legend);
  }
}

const button = (label, onclick, more = {}) => h("button", { type: "button", title: label, onclick, ...more }, label);

function fact([label, value]) {
  const shown = value instanceof Node ? value : h("b", {}, value);
  return h("span", {}, h("span", {}, label), shown);
}

const pairFact = (label, words, value) => [label, h("b", { class: "calro-pair" }, tail(words), h("span", {}, value))];
const most = (layers, figure) => layers.reduce((best, layer) => (figure(layer) > figure(best) ? layer : best));
const sum = (layers, key) => layers.reduce((total, layer) => total + layer[key], 0);

function saved(layers) {
  const last = layers.at(-1);
  return [
    [text("saved"), bytes(sum(layers, "bytes_before") - sum(layers, "bytes_after"))],
    [text("last_error"), last ? error(primaryError(last)) : "–"],
  ];
}

function count({ run }) {
  const done = run?.done ?? 0;
  return [text("layers"), text("done_of", { done: whole(done), total: whole(run?.total ?? 0) })];
}

function worst(layers) {
  if (!layers.length) return [];
  const seconds = (layer) => layer.errors.seconds;
  const [slow, bad] = [most(layers, seconds), most(layers, primaryError)];
  return [
    pairFact(text("worst"), bad.name, error(primaryError(bad))),
    pairFact(text("slowest"), slow.name, duration(seconds(slow))),
  ];
}

/** The headline of a run with a calibration: the output error (W8A8), nearest's beside it. */
function headline({ output_w8a8: output }) {
  if (!output) return [];
  return [pairFact(text("error_output_w8a8"), `nearest ${error(output.nearest)}`, error(output.error))];
}

function planned(plan) {
  return [
    [text("file"), change(plan.bytes_before, plan.bytes_after)],
    [text("of_float"), percent(plan.bytes_after / plan.bytes_before)],
    [text("layers"), whole(plan.layers)],
    [text("kept_layers"), whole(plan.kept_layers)],
    [text("peak_memory"), bytes(plan.peak)],
    ...(plan.seconds == null ? [] : [[text("time_before"), duration(plan.seconds)]]),
  ];
}

function stopped(title, { run, layers }) {
  return { title, detail: run?.next, facts: run?.total ? [count({ run }), ...saved(layers)] : [] };
}

/** For each phase: the title, what stands beside it, facts ([label, value]), and the share that is done. */
const VIEWS = {
  idle: (_, check) => ({
    title: text(check?.plan ? "planned" : "idle"),
    detail: check?.plan?.title,
    facts: check?.plan ? planned(check.plan) : [],
  }),
  preparing: () => ({ title: text("preparing"), facts: [] }),
  running: (state) => {
    const left = secondsLeft(state.run);
    const remaining = left == null ? "–" : duration(left);
    return {
      title: text(state.run.next ? "rounding" : "finishing"),
      detail: state.run.next,
      facts: [count(state), [text("time_left"), remaining], ...saved(state.layers)],
      share: state.run.weights_done / (state.run.weights_total || 1),
    };
  },
  rounded: (state) => ({
    title: text("finishing"),
    facts: [count(state), [text("time"), duration(state.run.seconds)], ...saved(state.layers)],
    share: 1,
  }),
  done: ({ report }) => ({
    title: report.from_disk ? text("done_from_disk") : text("done", { time: duration(report.seconds) }),
    detail: report.profile,
    facts: [
      ...headline(report.totals),
      [text("size"), change(report.totals.bytes_before, report.totals.bytes_after)],
      [text("error_weight"), error(report.totals.weight.error)],
      ...worst(report.layers),
    ],
    share: 1,
  }),
  interrupted: (state) => stopped(text("interrupted"), state),
  failed: (state) => stopped(text("failed"), state),
};
