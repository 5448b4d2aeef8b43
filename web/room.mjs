// How much room a node takes: advanced inputs are folded away, and the panel fits, in both modes.

import { app } from "../../scripts/app.js";
import { linked } from "./graph.mjs";

/** On the canvas the wheel zooms, wherever the pointer is; Nodes 2.0 sees to that itself. */
export function zoom(event) {
  if (!window.LiteGraph?.vueNodesMode) app.canvas.processMouseWheel(event);
}

/** Workflows that were saved without the panel have nodes too small for it. */
export function makeRoom(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/** On the canvas advanced inputs are folded away as Nodes 2.0 does by itself, unless something is linked to them. */
export function fold(node, folds = !window.LiteGraph?.vueNodesMode && !node.showAdvanced) {
  for (const widget of node.widgets.filter(({ options }) => options?.advanced)) {
    const hidden = folds && !linked(node, widget.name);
    if (Boolean(widget.hidden) !== hidden) widget.hidden = hidden;
  }
}

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
