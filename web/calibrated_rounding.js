// The front end of calibrated-rounding: panels in its nodes, from the server's events, outputs and history.
// Works on the public extension API alone, in the canvas and in Nodes 2.0.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Watch, joint, question } from "./check.mjs";
import { TargetDefault } from "./defaults.mjs";
import { keepDigits } from "./digits.mjs";
import { loadStyle } from "./dom.mjs";
import { executionId, linked, nodeAt, source, values, walk, workflowId } from "./graph.mjs";
import { recall } from "./history.mjs";
import { FilePanel } from "./file_panel.mjs";
import { joined, watchEnds } from "./finished.mjs";
import { failure } from "./notices.mjs";
import { Panel } from "./panel.mjs";
import { openReport } from "./report.mjs";
import { fold, folding, makeRoom, turnAdvanced, zoom } from "./room.mjs";
import * as runs from "./runs.mjs";
import { refreshLists } from "./saved.mjs";
import { differs } from "./settings.mjs";
import { setTarget, settingNode } from "./target.mjs";
import { TextPanel } from "./text_panel.mjs";
import { loadWords, text } from "./text.mjs";

/** loads: the type of the input whose file is to be checked. whole: the node reads the file itself. */
const QUANTIZING = {
  CalibratedRoundingQuantizeModel: { loads: "MODEL" },
  CalibratedRoundingQuantizeTextEncoder: { loads: "CLIP" },
  CalibratedRoundingQuantizeFile: { whole: true },
};

/**
 * Nodes that say a few words. over: the input through which they show what a quantize node before them knows. kind: what
 * their words are (text_panel.mjs). name: the widget with the name of a file to write. together: the server is asked before
 * the run, too.
 */
const TALKING = {
  CalibratedRoundingSaveModel: { over: "model", kind: "files", name: "filename_prefix" },
  CalibratedRoundingSaveTextEncoder: { over: "clip", kind: "files", name: "filename_prefix" },
  CalibratedRoundingQuantizeToSize: { together: true },
  CalibratedRoundingCollectCalibration: {},
  CalibratedRoundingCalibrateModel: {},
  CalibratedRoundingCalibrateTextEncoder: {},
  CalibratedRoundingSaveCalibration: { kind: "files", name: "name" },
  CalibratedRoundingLoadCalibration: {},
  CalibratedRoundingCompareModels: { kind: "table" },
};

/** Nodes that name a file and say what it is. */
const FILES = new Set(["CalibratedRoundingInspectFile", "CalibratedRoundingLoadRecipe"]);

const PREFIX = "CalibratedRounding";
const LOOKING = 250; // milliseconds between looks at the settings
const MARGIN = 8;
const WIDTH = 320;
const WIDTH_OF_NAMES = 380; // so that the name of a file can be read
const WIDGET = "calibrated_rounding";

const panels = new WeakMap();
const watches = new WeakMap();
const defaults = new WeakMap();
const ours = ({ comfyClass }) => comfyClass in QUANTIZING || comfyClass in TALKING || FILES.has(comfyClass);

function* ourNodes() {
  for (const [id, node] of walk()) if (panels.has(node)) yield [id, node];
}

const takesEncoder = ({ comfyClass }) => QUANTIZING[comfyClass]?.loads === "CLIP";

function makePanel(node, quantizes) {
  if (FILES.has(node.comfyClass)) return new FilePanel(node);
  if (!quantizes) return new TextPanel(TALKING[node.comfyClass].kind ?? "words", node);
  return new Panel(
    (report) => openReport(report, node.title, aiming(node, report)),
    () => turnAdvanced(node),
    node,
    takesEncoder(node),
  );
}

function addPanel(node) {
  const quantizes = node.comfyClass in QUANTIZING;
  const panel = makePanel(node, quantizes);
  const height = panel.height + 2 * MARGIN;
  const widget = node.addDOMWidget(WIDGET, "CALIBRATED_ROUNDING_PANEL", panel.element, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: () => height,
    getMaxHeight: () => height,
    getValue: () => "",
  });
  widget.serialize = false;
  panel.element.addEventListener("wheel", zoom);
  panels.set(node, panel);
  if (quantizes || TALKING[node.comfyClass]?.together) watches.set(node, new Watch((check) => panel.showCheck(check)));
  if (quantizes) defaults.set(node, new TargetDefault(node));
  if (quantizes) folding(node);
  const width = TALKING[node.comfyClass]?.kind === "files" ? WIDTH_OF_NAMES : WIDTH;
  node.setSize([Math.max(node.size[0], width), node.computeSize()[1]]);
}

/** What makes a size of a report the target of the next run; null where the settings are out of reach. */
function aiming(node, report) {
  const owner = settingNode(node);
  return owner && ((nbytes) => setTarget(owner, report, nbytes));
}

/** Keep a node's callback and add to it. */
function also(node, name, added) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    added(...args);
    return result;
  };
}

function show(workflow, id, state) {
  if (!state || workflow !== workflowId()) return;
  panels.get(nodeAt(id) ?? {})?.show(state);
}

function executed(node, output) {
  const id = executionId(node);
  const before = panels.get(node)?.state;
  const seen = [...(before?.files ?? []), before?.report?.saved ?? []].flat().map(({ path }) => path);
  const state = runs.executed(workflowId(), id, output);
  const files = state?.files ?? (state?.report?.saved ? [state.report.saved] : []);
  if (files.some(({ path }) => !seen.includes(path))) refreshLists();
  show(workflowId(), id, state);
}

let refreshing = null;
let again = false;

/** Show what is known of every node, here or on the server; asked for meanwhile, once more. */
function refresh() {
  again = Boolean(refreshing);
  refreshing ??= recallAll()
    .catch((error) => console.warn("calibrated-rounding: no history", error))
    .finally(() => {
      refreshing = null;
      if (again) refresh();
    });
}

async function recallAll() {
  const workflow = workflowId();
  const nodes = new Map(Array.from(ourNodes(), ([id, node]) => [id, node.comfyClass]));
  const before = new Map(Array.from(nodes.keys(), (id) => [id, runs.stateOf(workflow, id)]));
  for (const [id, state] of before) show(workflow, id, state);
  const found = nodes.size ? await recall(workflow, nodes) : [];
  for (const [id, state] of found) {
    // What has come while the server was asked is newer than its answer.
    if (runs.stateOf(workflow, id) === before.get(id)) show(workflow, id, runs.keep(workflow, id, state));
  }
}

/**
 * When the prompt has ended, the history has what the page lacks: an output that came while the page was loading, and the
 * settings of an output from a cache.
 */
function succeeded() {
  const lacks = (node, { phase, graph }) =>
    phase === "rounded" || (phase === "done" && !graph && node.comfyClass in QUANTIZING);
  if (Array.from(ourNodes()).some(([, node]) => lacks(node, panels.get(node).state ?? {}))) refresh();
}

function progressed({ detail }) {
  joined();
  const workflow = detail.workflow ?? workflowId();
  const state = runs.progressed(workflow, detail);
  if (state) show(workflow, detail.node, state);
  else refresh();
}

const stopped =
  (phase) =>
  ({ detail }) => {
    const node = nodeAt(String(detail.node_id));
    if (!node || node.comfyClass !== detail.node_type || !panels.has(node)) return;
    const { node_id: id, exception_message: message, prompt_id: prompt } = detail;
    show(workflowId(), id, runs.ended(workflowId(), id, phase, message, prompt));
  };

let looking = null;

function look() {
  if (document.hidden) return;
  for (const [id, node] of ourNodes()) {
    const kind = QUANTIZING[node.comfyClass];
    const saves = TALKING[node.comfyClass]?.kind === "files";
    if (kind) lookAt(id, node, kind);
    if (TALKING[node.comfyClass]?.together) watches.get(node).look(joint(node));
    if (FILES.has(node.comfyClass)) panels.get(node).look();
    if (saves) panels.get(node).showCheck(toSave(node, TALKING[node.comfyClass]));
  }
}

/** What may have changed around a quantize node. */
function lookAt(id, node, kind) {
  const panel = panels.get(node);
  fold(node);
  watches.get(node).look(question(node, kind));
  panel.showFreshness(watches.get(node).isFresh);
  defaults.get(node).look(panel.check?.plan);
  panel.showCalibration(panels.get(source(node, "calibration") ?? {})?.state?.notices);
  panel.compare((graph) => differs(id, graph));
}

/** What a node that saves should say of its name, and of what a quantize node gives it. */
function toSave(node, { over, name }) {
  const before = over && source(node, over);
  const notices = panels.get(before ?? {})?.check?.notices ?? [];
  const empty = !linked(node, name) && !String(values(node)[name] ?? "").trim();
  const refused = empty ? [failure(text("name_empty"))] : [];
  return { notices: [...refused, ...notices.filter(({ kind }) => kind === "needs_pack")] };
}

/** An event handler that waits for the graph; what comes before, `refresh` finds on the server. */
const ready = (handler) => (event) => looking && handler(event);

// Here and not in setup, because the page of a running prompt gets events before that.
api.addEventListener("calibrated_rounding.progress", ready(progressed));
api.addEventListener("execution_success", ready(succeeded));
api.addEventListener("execution_error", ready(stopped("failed")));
api.addEventListener("execution_interrupted", ready(stopped("interrupted")));

app.registerExtension({
  name: "calibrated-rounding",

  async setup() {
    loadStyle();
    watchEnds();
    await loadWords();
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    keepDigits(node);
    also(node, "addCustomWidget", () => keepDigits(node)); // choices bring inputs
    if (!ours(node)) return;
    addPanel(node);
    also(node, "onExecuted", (output) => executed(node, output));
    also(node, "onRemoved", () => panels.get(node)?.remove());
  },

  loadedGraphNode(node) {
    if (panels.has(node)) makeRoom(node);
  },

  afterConfigureGraph() {
    looking ??= setInterval(look, LOOKING);
    refresh();
  },
});
