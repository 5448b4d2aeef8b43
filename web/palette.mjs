// One colour for each format, told apart with any kind of colour vision; style.css holds the colours themselves.

import { h } from "./dom.mjs";

/** The colour of a format, as CSS has it; formats that are not known share one. */
export const color = (format) => `var(--calro-${format}, var(--calro-other))`;

/** A square of the format's colour and its name. */
export function legend(format) {
  return h("span", { class: "calro-legend" }, h("i", { style: `background: ${color(format)}` }), format);
}
