// The front end of calibrated-rounding: panels in its nodes, fed by the server's events, by outputs and by the history.
// Works on the public extension API alone, in the canvas and in Nodes 2.0.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Watch, question } from "./check.mjs";
import { loadStyle } from "./dom.mjs";
import { executionId, linked, nodeAt, source, walk, workflowId } from "./graph.mjs";
import { recall } from "./history.mjs";
import { HEIGHT as PANEL_HEIGHT, Panel } from "./panel.mjs";
import { openReport } from "./report.mjs";
import * as runs from "./runs.mjs";
import { HEIGHT as TEXT_HEIGHT, TextPanel } from "./text_panel.mjs";
import { loadWords } from "./text.mjs";

/** loads: the type of the input whose file is to be checked. whole: the node reads the file itself. */
const QUANTIZING = {
  CalibratedRoundingQuantizeModel: { loads: "MODEL" },
  CalibratedRoundingQuantizeTextEncoder: { loads: "CLIP" },
  CalibratedRoundingQuantizeFile: { whole: true },
};

/** Nodes that say a few words, and the input over which they are told what a quantize node before them knows. */
const TALKING = {
  CalibratedRoundingSaveModel: "model",
  CalibratedRoundingSaveTextEncoder: "clip",
  CalibratedRoundingCollectCalibration: null,
  CalibratedRoundingCalibrateModel: null,
  CalibratedRoundingSaveCalibration: null,
  CalibratedRoundingLoadCalibration: null,
};

const LOOKING = 250; // milliseconds between looks at the settings
const MARGIN = 8;
const WIDTH = 320;
const WIDGET = "calibrated_rounding";

const panels = new WeakMap();
const watches = new WeakMap();
const ours = (node) => node.comfyClass in QUANTIZING || node.comfyClass in TALKING;

function* ourNodes() {
  for (const [id, node] of walk()) if (panels.has(node)) yield [id, node];
}

function addPanel(node) {
  const quantizes = node.comfyClass in QUANTIZING;
  const panel = quantizes
    ? new Panel(
        (report) => openReport(report, node.title),
        () => turnAdvanced(node),
      )
    : new TextPanel();
  const height = (quantizes ? PANEL_HEIGHT : TEXT_HEIGHT) + 2 * MARGIN;
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
  if (quantizes) watches.set(node, new Watch((check) => panel.showCheck(check)));
  if (quantizes) folding(node);
  node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
}

/** On the canvas the wheel zooms, wherever the pointer is; Nodes 2.0 sees to that itself. */
function zoom(event) {
  if (!window.LiteGraph?.vueNodesMode) app.canvas.processMouseWheel(event);
}

/** Workflows that were saved without the panel have nodes too small for it. */
function makeRoom(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/** On the canvas advanced inputs are folded away as Nodes 2.0 does by itself, unless something is linked to them. */
function fold(node, folds = !window.LiteGraph?.vueNodesMode && !node.showAdvanced) {
  for (const widget of node.widgets.filter(({ options }) => options?.advanced)) {
    const hidden = folds && !linked(node, widget.name);
    if (Boolean(widget.hidden) !== hidden) widget.hidden = hidden;
  }
}

/** In both modes a node is as high as what it shows, also where the front end measures it by all its widgets. */
function folding(node) {
  const { computeSize } = node;
  node.computeSize = function (...args) {
    fold(this, !this.showAdvanced);
    const size = computeSize.apply(this, args);
    fold(this);
    return size;
  };
  fold(node);
}

function turnAdvanced(node) {
  node.showAdvanced = !node.showAdvanced;
  fold(node);
  node.setSize([node.size[0], node.computeSize()[1]]);
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
  const state = runs.finished(output);
  if (state) show(workflowId(), executionId(node), runs.keep(workflowId(), executionId(node), state));
}

let refreshing = null;

/** Show what is known of every node, here or on the server. */
function refresh() {
  refreshing ??= recallAll()
    .catch((error) => console.warn("calibrated-rounding: no history", error))
    .finally(() => (refreshing = null));
}

async function recallAll() {
  const workflow = workflowId();
  const nodes = new Map(Array.from(ourNodes(), ([id, node]) => [id, node.comfyClass]));
  if (!nodes.size) return;
  for (const id of nodes.keys()) show(workflow, id, runs.stateOf(workflow, id));
  for (const [id, state] of await recall(workflow, nodes)) show(workflow, id, runs.keep(workflow, id, state));
}

/** A node whose output came while the page was loading has it in the history when the prompt has ended. */
function succeeded() {
  if (Array.from(ourNodes()).some(([, node]) => panels.get(node).state?.phase === "rounded")) refresh();
}

function progressed({ detail }) {
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
    show(workflowId(), detail.node_id, runs.ended(workflowId(), detail.node_id, phase, detail.exception_message));
  };

let looking = null;

function look() {
  if (document.hidden) return;
  for (const [, node] of ourNodes()) {
    const kind = QUANTIZING[node.comfyClass];
    const input = TALKING[node.comfyClass];
    if (kind) fold(node);
    if (kind) watches.get(node).look(question(node, kind));
    if (input) panels.get(node).showCheck(toSave(source(node, input)));
  }
}

/** What a node that saves should say of what a quantize node gives it. */
function toSave(node) {
  const remarks = panels.get(node ?? {})?.check?.remarks ?? [];
  return { remarks: remarks.filter(({ kind }) => kind === "needs_pack") };
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
    await loadWords();
  },

  nodeCreated(node) {
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
