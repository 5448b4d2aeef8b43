// How much room a node takes: advanced inputs are folded away, and the panel fits, in both modes.

import { app } from "../../scripts/app.js";
import { linked } from "./graph.mjs";
import { scrollsUnder } from "./overflow.mjs";

/** On the canvas the wheel zooms wherever there is nothing to scroll; Nodes 2.0 sees to that itself. */
export function zoom(event) {
  if (window.LiteGraph?.vueNodesMode) return;
  if (scrollsUnder(event)) event.stopPropagation();
  else app.canvas.processMouseWheel(event);
}

/** Workflows that were saved without the panel have nodes too small for it. */
export function makeRoom(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/**
 * On the canvas advanced inputs are folded away as Nodes 2.0 does by itself, unless something is linked to them. In both
 * modes a recommended format hides the inputs that it decides.
 */
export function fold(node, folds = !window.LiteGraph?.vueNodesMode && !node.showAdvanced) {
  const recommended = node.widgets.find(({ name }) => name === "format")?.value === "recommended";
  let changed = false;
  for (const widget of node.widgets.filter(({ name, options }) => options?.advanced || isDecided(name))) {
    const folded = folds && Boolean(widget.options?.advanced) && !linked(node, widget.name);
    const hidden = folded || (recommended && isDecided(widget.name));
    if (Boolean(widget.hidden) === hidden) continue;
    widget.hidden = hidden;
    if (widget.options) widget.options.hidden = hidden;
    changed ||= isDecided(widget.name);
  }
  return changed;
}

/** Whether a recommendation decides a widget's value (nodes/recipe/values.py, DECIDED). */
const isDecided = (name) => ["rounding", "upgrade"].includes(name.split(".")[0]);

/** In both modes a node is as high as what it shows, also where the front end measures it by all its widgets. */
export function folding(node) {
  const { computeSize } = node;
  node.computeSize = function (...args) {
    fold(this, !this.showAdvanced);
    const size = computeSize.apply(this, args);
    fold(this);
    return size;
  };
  fold(node);
}

export function turnAdvanced(node) {
  node.showAdvanced = !node.showAdvanced;
  fold(node);
  node.setSize([node.size[0], node.computeSize()[1]]);
}
