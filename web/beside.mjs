// Nodes that a button adds beside another one, where there is room.

const GAP = 40; // pixels between nodes
const TITLE = 30;

/** A new node of a type beside `node`, set up by `fill(created)` as one step of undo; null where the type is unknown. */
export function addBeside(node, type, fill) {
  const created = window.LiteGraph.createNode(type);
  const { graph } = node;
  if (!created || !graph) return null;
  graph.beforeChange?.();
  created.pos = freePlace(node, created);
  graph.add(created);
  fill(created);
  graph.afterChange?.();
  graph.setDirtyCanvas?.(true, true);
  return created;
}

/** Set a combo widget to a value that its list may lack, as of a file that is new. */
export function choose(node, name, value) {
  const widget = node.widgets.find((entry) => entry.name === name);
  const offered = widget.options?.values;
  if (Array.isArray(offered) && !offered.includes(value)) widget.options.values = [...offered, value];
  widget.value = value;
  widget.callback?.(value);
}

/** To the right of the node, as far down as other nodes reach. */
function freePlace(node, created) {
  const x = node.pos[0] + node.size[0] + GAP;
  let y = node.pos[1];
  const overlaps = ({ pos, size }) =>
    pos[0] < x + created.size[0] && x < pos[0] + size[0] && pos[1] - TITLE < y + created.size[1] && y - TITLE < pos[1] + size[1];
  const others = [...node.graph.nodes].sort((a, b) => a.pos[1] + a.size[1] - b.pos[1] - b.size[1]);
  for (const other of others) if (overlaps(other)) y = other.pos[1] + other.size[1] + GAP + TITLE;
  return [x, y];
}
