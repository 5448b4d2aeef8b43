// From a size in the report to the settings of the node: what the next run aims for.

import { linked, source } from "./graph.mjs";

const RECIPE = "CalibratedRoundingRecipe";
const STEP = 10000; // shares have four decimals

/** The node whose widgets decide the formats of a quantize node; null where they are out of sight, as in a file. */
export function settingNode(node) {
  const owner = linked(node, "recipe") ? source(node, "recipe") : node;
  return owner === node || owner?.comfyClass === RECIPE ? owner : null;
}

/** Make a size the target: the smallest error in at most `nbytes`. What a recommendation decided stays as it was. */
export function setTarget(node, { recipe, totals }, nbytes) {
  const recommended = widget(node, "format").value === "recommended";
  set(node, "format", "auto");
  set(node, "format.formats", recipe.formats.join(", "));
  set(node, "format.target", "share");
  // Rounded up, so that the size itself is within.
  set(node, "format.target.target_share", Math.min(1, Math.ceil((STEP * nbytes) / totals.bytes_before) / STEP));
  if (recommended) set(node, "rounding", recipe.rounding);
  node.setDirtyCanvas?.(true, true);
}

const widget = (node, name) => node.widgets.find((entry) => entry.name === name);

function set(node, name, value) {
  const entry = widget(node, name);
  if (!entry || entry.value === value) return;
  entry.value = value;
  // The callback of a number rounds it to the digits that are shown.
  if (typeof value !== "number") entry.callback?.(value);
}
