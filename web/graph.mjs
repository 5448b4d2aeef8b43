// Where nodes are and what they are linked to, through the graph's public methods.

import { app } from "../../scripts/app.js";

const DEPTH = 64;

export const workflowId = () => (app.rootGraph ?? app.graph)?.id ?? null;

/** Every node with its execution id; a node in a subgraph is called "subgraph node:node". */
export function* walk(graph = app.rootGraph ?? app.graph, prefix = "") {
  for (const node of graph?.nodes ?? []) {
    yield [`${prefix}${node.id}`, node];
    if (node.subgraph) yield* walk(node.subgraph, `${prefix}${node.id}:`);
  }
}

export function nodeAt(executionId) {
  for (const [id, node] of walk()) if (id === executionId) return node;
  return null;
}

export function executionId(wanted) {
  for (const [id, node] of walk()) if (node === wanted) return id;
  return null;
}

const slotOf = (node, name) => (node.inputs ?? []).findIndex((input) => input.name === name);

export function linked(node, name) {
  const slot = slotOf(node, name);
  return slot >= 0 && Boolean(node.isInputConnected(slot));
}

/** The node that feeds the input `name`, null where that is nothing or out of sight. */
export function source(node, name) {
  const slot = slotOf(node, name);
  return (slot >= 0 && node.getInputNode(slot)) || null;
}

/** The values of a node's widgets by name, as a prompt has them. */
export function values(node) {
  const plain = (node.widgets ?? []).filter((widget) => ["string", "number", "boolean"].includes(typeof widget.value));
  return Object.fromEntries(plain.filter((widget) => widget.serialize !== false).map((w) => [w.name, w.value]));
}

/** The nodes that load one model file: kind of folder and the widget that names the file. */
const LOADERS = {
  UNETLoader: ["diffusion_models", "unet_name"],
  CheckpointLoaderSimple: ["checkpoints", "ckpt_name"],
  CLIPLoader: ["text_encoders", "clip_name"],
  CalibratedRoundingLoadExampleTextEncoder: ["text_encoders", "file"],
  CalibratedRoundingLoadBlockwiseModel: ["diffusion_models", "file"],
};

/** [kind of folder, file name] of what a MODEL or CLIP input is loaded from, through nodes that pass it on, or null. */
export function loadedFile(node, type) {
  for (let step = 0; node && step < DEPTH; step++) {
    const input = (node.inputs ?? []).find((entry) => entry.type === type);
    node = input ? source(node, input.name) : null;
    const [kind, widget] = LOADERS[node?.comfyClass] ?? [];
    if (kind) return linked(node, widget) ? null : [kind, values(node)[widget]];
    if (node?.comfyClass?.startsWith("CalibratedRoundingQuantize")) return null;
  }
  return null;
}
