// What became of nodes while this page did not look: from the runs that the server remembers, and from its history.

import { api } from "../../scripts/api.js";
import { finished, running } from "./runs.mjs";

const ENTRIES = 64;
const BAD_ENDS = { execution_interrupted: "interrupted", execution_error: "failed" };

const asked = async (path) => (await api.fetchApi(path)).json();

export const liveRuns = () => asked("/calibrated_rounding/live");

/** Execution id -> state, for the `nodes` (execution id -> class) that have been run from this workflow. */
export async function recall(workflow, nodes) {
  const [runs, history] = await Promise.all([liveRuns(), asked(`/history?max_items=${ENTRIES}`)]);
  const states = new Map(lastOutcomes(history, workflow, nodes));
  for (const run of runs.filter((entry) => entry.workflow === workflow && nodes.has(entry.node))) {
    if (tellsMore(run, states.get(run.node))) states.set(run.node, running(run));
  }
  return states;
}

/** A run of the prompt that runs is newer than the history; one that ended badly knows more of the same prompt. */
function tellsMore(run, outcome) {
  return !outcome || !Object.values(BAD_ENDS).includes(run.state) || run.prompt === outcome.prompt;
}

function* lastOutcomes(history, workflow, nodes) {
  const seen = new Set();
  for (const [prompt, entry] of Object.entries(history).reverse()) {
    const [, , graph, extra] = entry.prompt;
    if (extra?.extra_pnginfo?.workflow?.id !== workflow) continue;
    for (const [node, kind] of nodes) {
      if (seen.has(node) || graph[node]?.class_type !== kind) continue;
      const state = outcome(entry, node);
      if (!state) continue;
      seen.add(node);
      yield [node, { ...state, prompt, graph }];
    }
  }
}

function outcome(entry, node) {
  for (const [kind, data] of entry.status?.messages ?? []) {
    if (BAD_ENDS[kind] && data.node_id === node)
      return { phase: BAD_ENDS[kind], message: data.exception_message, layers: [] };
  }
  return finished(entry.outputs[node]);
}
