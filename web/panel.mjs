// What a quantize node shows of its run: before, while it goes on, and afterwards. Every line keeps its place and height.

import { h, tail } from "./dom.mjs";
import { primaryError, verdict } from "./errors.mjs";
import { ask, mayAsk } from "./finished.mjs";
import { formatsButton, saysHow } from "./formats.mjs";
import { failure, line, merge, sentence } from "./notices.mjs";
import { markOverflow } from "./overflow.mjs";
import { legend } from "./palette.mjs";
import { secondsLeft, stage } from "./runs.mjs";
import { fileButtons, fileLine } from "./saved.mjs";
import { Strip } from "./strip.mjs";
import { bytes, change, duration, error, keptLayers, percent, range, text, whole } from "./text.mjs";

const TICK = 1000;
const HEIGHT = 238; // also in style.css
const ENDED = ["done", "interrupted", "failed"];

export class Panel {
  /**
   * openReport(report) and turnAdvanced() are called by the buttons. node: whose panel it is. weightOnly: it takes text
   * encoders.
   */
  constructor(openReport, turnAdvanced, node, weightOnly) {
    Object.assign(this, { node, weightOnly });
    this.height = HEIGHT;
    this.strip = new Strip();
    this.bar = h("div", { class: "calro-bar" }, h("i"));
    [this.head, this.facts, this.notices] = ["head", "facts", "notices"].map((name) =>
      h("div", { class: `calro-${name}` }),
    );
    markOverflow(this.notices);
    this.said = h("span", { class: "calro-unseen", role: "status" });
    this.button = button(text("full_report"), () => openReport(this.state.report));
    const advanced = button(text("advanced"), turnAdvanced, { class: "calro-advanced" });
    const buttons = h("div", { class: "calro-buttons" }, this.button, advanced);
    const body = h("div", { class: "calro-body" }, this.facts, this.notices);
    const parts = [this.head, this.strip.element, this.bar, body, buttons, this.said];
    this.element = h("div", { class: "calro calro-panel", role: "group", "aria-label": text("panel") }, ...parts);
    this.state = { phase: "idle", layers: [] };
    this.check = null;
    this.isFresh = true;
    this.changed = false;
    this.calibration = [];
    this.#draw();
  }

  show(state) {
    if (state?.graph !== this.state.graph) this.changed = false;
    this.state = state ?? { phase: "idle", layers: [] };
    this.#later();
  }

  /** What the server says before the run, null where it says nothing. */
  showCheck(check) {
    this.check = check;
    this.#later();
  }

  /** Whether the server has said it of the present settings. */
  showFreshness(isFresh) {
    if (isFresh === this.isFresh) return;
    this.isFresh = isFresh;
    this.#later();
  }

  /** What the node that the calibration comes from says of it. */
  showCalibration(notices = []) {
    if (JSON.stringify(notices) === JSON.stringify(this.calibration)) return;
    this.calibration = notices;
    this.#later();
  }

  /** Look whether the settings are still the ones of the run that is shown; differs(graph) says so. */
  compare(differs) {
    const { phase, graph } = this.state;
    const changed = ENDED.includes(phase) && Boolean(graph) && differs(graph);
    if (changed === this.changed) return;
    this.changed = changed;
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

  get #phase() {
    return this.changed && ENDED.includes(this.state.phase) ? "changed" : this.state.phase;
  }

  #draw() {
    const { phase, layers, run, report } = this.state;
    const view = VIEWS[this.#phase](this.state, this.check);
    this.element.dataset.phase = this.#phase;
    this.element.classList.toggle("calro-bare", this.#phase === "failed" && !layers.length);
    this.head.replaceChildren(h("b", {}, view.title), ...(view.detail ? [tail(view.detail)] : []));
    this.facts.replaceChildren(...view.facts.map(fact));
    if (this.#phase === "changed") this.strip.show([], 0);
    else this.strip.show(layers, Math.max(run?.total ?? 0, layers.length));
    this.bar.firstChild.style.width = `${100 * (view.share ?? 0)}%`;
    this.notices.replaceChildren(...this.#notices());
    this.button.disabled = !report;
    this.#offerNotification(phase === "running" && mayAsk());
    this.#offerFile(this.changed ? null : report?.saved);
    if (this.said.textContent !== view.title) this.said.textContent = view.title;
    this.#tick(phase === "running");
  }

  /** During a run: a button that asks the browser for permission to tell its end. */
  #offerNotification(offered) {
    if (Boolean(this.bell) === offered) return;
    this.bell?.remove();
    this.bell = offered ? button(text("notify_me"), () => ask().then(() => this.#draw())) : null;
    if (this.bell) this.button.after(this.bell);
    if (this.bell) this.bell.title = text("notify_me_help");
  }

  /** Buttons for the file that was written: load it, and describe it for others. */
  #offerFile(file = null) {
    if (file?.path === this.file?.path) return;
    this.file = file;
    for (const element of this.added ?? []) element.remove();
    this.added = file ? fileButtons(file, this.node) : [];
    this.button.after(...this.added);
  }

  /** While nothing comes from the server, the time left still goes down. */
  #tick(on) {
    if (on && !this.timer) this.timer = setInterval(() => this.#draw(), TICK);
    if (!on && this.timer) this.timer = clearInterval(this.timer);
  }

  #notices() {
    const { message, report, layers } = this.#phase === "changed" ? { layers: [] } : this.state;
    const said = new Set(report?.notes.map(({ kind }) => kind));
    // A result is not shown with what was said of other settings.
    const checked = this.#phase === "done" && !this.isFresh ? [] : (this.check?.notices ?? []);
    const before = [...this.calibration.filter(({ kind }) => !said.has(kind)), ...checked];
    const failed = this.#phase === "failed";
    // The error that made the run fail takes the place of errors that would.
    const others = (notice) => notice.level !== "error" && sentence(notice) !== message?.trim();
    const notices = failed
      ? [failure(message), ...before.filter(others)]
      : merge(report?.notices, report?.notes, before);
    const file = report?.saved ? [fileLine(report.saved)] : [];
    const fresh = this.#phase === "idle" && !this.check?.plan && notices.every(({ level }) => level === "info");
    const hint = fresh ? [h("p", {}, text("hint"))] : [];
    if (file.length + hint.length + notices.length) return [...file, ...hint, ...this.#lines(notices)];
    const formats = new Set(layers.map((layer) => layer.format));
    return [...(formats.size ? formats : (this.check?.plan?.formats ?? []))].map(legend);
  }

  /** The words about the chosen format lead to all formats. */
  #lines(notices) {
    const lines = notices.map(line);
    const place = notices.findLastIndex(saysHow);
    if (place >= 0) lines[place].append(" ", formatsButton(this.node, this.weightOnly));
    return lines;
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
  const output = layers.at(-1)?.errors.output_w8a8;
  return [
    [text("saved"), bytes(sum(layers, "bytes_before") - sum(layers, "bytes_after"))],
    ...(output ? [[text("last_error"), error(output.error)]] : []),
  ];
}

function count({ run }) {
  const done = run?.done ?? 0;
  return [text("layers"), text("done_of", { done: whole(done), total: whole(run?.total ?? 0) })];
}

/** The output error (W8A8), nearest's beside it, and the layer with the largest. */
function outputErrors({ totals, layers }) {
  const output = totals.output_w8a8;
  if (!output) {
    const words = h("span", { class: "calro-plain", title: text("needs_calibration") }, text("not_measured"));
    return [[text("error_output_w8a8"), words]];
  }
  const beside = output.error === output.nearest ? "" : text("with_nearest", { error: error(output.nearest) });
  const worst = most(
    layers.filter(({ errors }) => errors.output_w8a8),
    primaryError,
  );
  return [
    pairFact(text("error_output_w8a8"), beside, error(output.error)),
    pairFact(text("worst"), worst.name, error(primaryError(worst))),
  ];
}

/** Size and number of what is quantized and kept, of a plan or of a report's totals. */
function sizes(counts) {
  const { bytes_before: before, bytes_after: after, reachable } = counts;
  if (reachable) return choices(reachable, before, after);
  return [
    pairFact(text("size"), percent(after / (before || 1)), change(before, after)),
    [text("layers"), whole(counts.layers)],
    [text("kept_layers"), keptLayers(counts)],
    [text("others"), bytes(counts.other_bytes)],
  ];
}

/** What is known before `auto` chooses: the target's size if it has one, and the sizes that it can reach. */
function choices({ smallest, largest, layers }, before, after) {
  const size = after == null ? ["", bytes(before)] : [percent(after / (before || 1)), change(before, after)];
  return [
    pairFact(text("size"), ...size),
    pairFact(text("reachable"), "", range(smallest, largest)),
    [text("layers"), text("to_choose", { count: whole(layers) })],
  ];
}

/** What a plan says of its run: memory, and time where such a run has ended here before. */
function costs({ peak, seconds }) {
  return [[text("peak_memory"), bytes(peak)], ...(seconds == null ? [] : [[text("time_before"), duration(seconds)]])];
}

const planned = ({ plan }) => [...sizes(plan), ...costs(plan)];

/** What the last run came to, beside settings that it did not have. */
function lastRun({ phase, report }) {
  if (phase !== "done") return text(phase).toLocaleLowerCase();
  const { bytes_after: after, output_w8a8: output } = report.totals;
  return [bytes(after), ...(output ? [text("output_error", { error: error(output.error) })] : [])].join(", ");
}

function stopped(title, { run, layers }) {
  return { title, detail: run?.next, facts: run?.total ? [count({ run }), ...saved(layers)] : [] };
}

/** For each phase: the title, what stands beside it, facts ([label, value]), and the share that is done. */
const VIEWS = {
  idle: (_, check) => ({
    title: text(check?.plan ? "planned" : "idle"),
    detail: check?.plan?.title,
    facts: check?.plan ? planned(check) : [],
  }),
  changed: (state, check) => ({
    title: text(check?.plan ? "planned" : "changed"),
    detail: text("last_run", { run: lastRun(state) }),
    facts: check?.plan ? planned(check) : [],
  }),
  preparing: () => ({ title: text("preparing"), facts: [] }),
  running: (state) => {
    const left = secondsLeft(state.run);
    const remaining = left == null ? "–" : duration(left);
    const measures = state.run.stage === "measuring";
    return {
      title: text(stage(state.run)),
      detail: state.run.next,
      facts: [count(state), [text("time_left"), remaining], ...(measures ? [] : saved(state.layers))],
      share: state.run.weights_done / (state.run.weights_total || 1),
    };
  },
  rounded: (state) => ({
    title: text("finishing"),
    facts: [count(state), [text("time"), duration(state.run.seconds)], ...saved(state.layers)],
    share: 1,
  }),
  done: ({ report }, check) => ({
    title: report.from_disk ? text("done_from_disk") : text("done", { time: duration(report.seconds) }),
    detail: (report.totals.output_w8a8 && verdict(report.totals.output_w8a8)) ?? check?.plan?.title ?? report.title,
    facts: [...outputErrors(report), ...sizes(report.totals)],
    share: 1,
  }),
  interrupted: (state) => stopped(text("interrupted"), state),
  failed: (state) => stopped(text("failed"), state),
};
