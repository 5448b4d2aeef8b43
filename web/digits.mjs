// Numbers keep the digits that the node declares with `round`. The front end rounds what is typed to the digits of `step`.

const seen = new WeakSet();

/** To be called for a new node, and for each input that it gains. */
export function keepDigits(node) {
  for (const widget of node.widgets ?? []) {
    if (widget.type !== "number" || !widget.options || seen.has(widget)) continue;
    seen.add(widget);
    widen(widget);
  }
}

function widen(widget) {
  const { round, precision } = widget.options;
  const most = round > 0 ? digits(round, 12) : 0;
  if (precision == null || most <= precision) return;
  const get = () => Math.max(precision, digits(Number(widget.value), most));
  Object.defineProperty(widget.options, "precision", { get, enumerable: true, configurable: true });
}

/** How many digits a number has after the point, at most `most`. */
function digits(value, most) {
  return value.toFixed(most).replace(/0+$/, "").split(".")[1]?.length ?? 0;
}
