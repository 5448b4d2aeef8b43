// What is known of each node's run, for every workflow that is open in this page.
//
// A state is {phase, run, layers, report, text, message}. phase: preparing, running, rounded (the engine is done, the
// node is not), done, interrupted, failed. run: the server's last words (nodes/page/live.py), with `received`, when they came.
// files, notices: of a node that has written files (nodes/page/shown.py).

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
  const known = before?.run?.run === event.run ? before.layers : [];
  if (event.start > known.length) return null;
  return keep(workflow, event.node, running(event, known.slice(0, event.start)));
}

/** The state that an event and the layers before it make. */
export function running(event, before = []) {
  const { state: phase, message, layers, ...rest } = event;
  return { phase, message, run: { ...rest, received: performance.now() }, layers: [...before, ...rows(layers)] };
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

/** A node's state after an error or an interrupt; the layers that were done stay visible. */
export function ended(workflow, node, phase, message) {
  const before = stateOf(workflow, node);
  const kept = before && ["preparing", "running", "rounded"].includes(before.phase) ? before : { layers: [] };
  if (before?.phase === phase) return before;
  return keep(workflow, node, { ...kept, phase, message });
}

/** Seconds left, estimated from the weights that are done; null before the first. */
export function secondsLeft(run, now = performance.now()) {
  if (!run.weights_done || run.weights_done >= run.weights_total) return null;
  const all = (run.seconds * run.weights_total) / run.weights_done;
  return Math.max(0, all - run.seconds - (now - run.received) / 1000);
}
