// What is known of each node's run, for every workflow that is open in this page.
//
// A state is {phase, run, layers, report, text, message, graph}. phase: preparing, running, rounded (the engine is done,
// the node is not), done, interrupted, failed. run: the server's last words (nodes/page/live.py), with `received`, when they
// came. files, notices: of a node that has written files (nodes/page/shown.py). graph: the nodes that the run's settings are
// in, as the API format has them; null where it is not known.

import { rows } from "./columns.mjs";

const states = new Map();
const key = (workflow, node) => `${workflow}/${node}`;

export const stateOf = (workflow, node) => states.get(key(workflow, node)) ?? null;

export function keep(workflow, node, state) {
  states.set(key(workflow, node), state);
  return state;
}

/** Take in an event; null if earlier ones were missed, so that the whole run has to be asked for. */
export function progressed(workflow, event) {
  const before = stateOf(workflow, event.node);
  const known = before?.run?.run === event.run ? before : { layers: [], graph: null };
  if (event.start > known.layers.length) return null;
  return keep(workflow, event.node, running(event, known.layers.slice(0, event.start), known.graph));
}

/** The state that an event, and the layers and the graph of earlier ones, make. */
export function running(event, before = [], known = null) {
  const { state: phase, message, layers, graph = known, ...rest } = event;
  return { phase, message, graph, run: { ...rest, received: performance.now() }, layers: [...before, ...rows(layers)] };
}

/** The state of a node with this output; null if it shows nothing. */
export function finished(output) {
  const packed = output?.calibrated_rounding?.[0];
  const text = (output?.text ?? []).join("\n");
  if (!packed?.layers && !text) return null;
  if (!packed?.layers) return { phase: "done", text, images: output.images, ...packed, layers: [] };
  const report = { ...packed, layers: rows(packed.layers), kept: rows(packed.kept) };
  return { phase: "done", text, report, layers: report.layers };
}

const UNFINISHED = ["preparing", "running", "rounded"];

/** Take in a node's output. It has the settings of the run that has just ended; one from a cache is older. */
export function executed(workflow, node, output) {
  const state = finished(output);
  const before = stateOf(workflow, node);
  const graph = UNFINISHED.includes(before?.phase) ? before.graph : null;
  return state && keep(workflow, node, { ...state, graph });
}

/** A node's state after an error or an interrupt of the prompt; the layers that were done in it stay visible. */
export function ended(workflow, node, phase, message, prompt) {
  const before = stateOf(workflow, node);
  const same = before?.run?.prompt === prompt;
  if (same && before.phase === phase) return before; // the engine has said it already
  return keep(workflow, node, { ...(same ? before : { layers: [], graph: null }), phase, message });
}

/** What a run does now: the key of its word. */
export const stage = (run) => (run.stage === "measuring" ? "measuring" : run.next ? "rounding" : "finishing");

/** Seconds left of the stage, estimated from the weights that are done; null before the first. */
export function secondsLeft(run, now = performance.now()) {
  if (!run.weights_done || run.weights_done >= run.weights_total) return null;
  const seconds = run.stage_seconds;
  const all = (seconds * run.weights_total) / run.weights_done;
  return Math.max(0, all - seconds - (now - run.received) / 1000);
}
