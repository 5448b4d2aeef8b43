// Whether the settings of a node, and of the nodes before it, are still the ones of a run.

import { linked, source, values, walk } from "./graph.mjs";

const [MUTED, BYPASSED] = [2, 4];
const DEPTH = 64;
const CALIBRATION = "calibration"; // its own seeds change with every run, so only whether one is linked counts

const isPlain = (value) => ["string", "number", "boolean"].includes(typeof value);

/** Whether the node `id` or a node before it is not as in `graph` (API format); what is out of sight is as it was. */
export function differs(id, graph) {
  return new Comparison(graph).differs(id);
}

class Comparison {
  constructor(graph) {
    this.graph = graph;
    this.nodes = new Map(walk());
    this.ids = new Map(Array.from(this.nodes, ([id, node]) => [node, id]));
    this.seen = new Set();
  }

  differs(id) {
    const [before, node] = [this.graph[id], this.nodes.get(id)];
    if (this.seen.has(id) || !before || !node) return false;
    this.seen.add(id);
    if (node.comfyClass !== before.class_type) return true;
    const now = values(node);
    const added = ({ name }) => !(name in before.inputs) && feeding(node, name);
    const changed = ([name, value]) =>
      Array.isArray(value) ? this.#relinked(node, name, value[0]) : isPlain(value) && reset(node, name, value, now);
    return (node.inputs ?? []).some(added) || Object.entries(before.inputs).some(changed);
  }

  #relinked(node, name, before) {
    if (!linked(node, name)) return true;
    const now = this.ids.get(feeding(node, name));
    if (!now || name === CALIBRATION) return false;
    // The graph names the node inside a subgraph node.
    return now === before ? this.differs(before) : !before.startsWith(`${now}:`);
  }
}

const reset = (node, name, before, now) => now[name] !== before || Boolean(feeding(node, name));

/** The node whose output an input gets, through nodes that only pass it on; null where there is none in sight. */
function feeding(node, name) {
  let found = source(node, name);
  for (let step = 0; found && step < DEPTH; step++) {
    if (found.mode === MUTED) return null;
    if (found.mode !== BYPASSED && !found.isVirtualNode) return found;
    const input = (found.inputs ?? []).find((entry) => linked(found, entry.name));
    found = input ? source(found, input.name) : null;
  }
  return null;
}
