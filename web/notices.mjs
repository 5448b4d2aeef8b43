// Notices of the server (quant/notices.py): {kind, level, values}, worded in the user's language.

import { h } from "./dom.mjs";
import { text } from "./text.mjs";

const SIGNS = { error: "✕", warning: "⚠", info: "i" };

/** A notice as a sentence. */
export function sentence({ kind, values }) {
  const words = Object.entries(values).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : value]);
  return text(`notice_${kind}`, Object.fromEntries(words));
}

/** A notice as a line with the sign of its level. */
export function line(notice) {
  const words = sentence(notice);
  const sign = h("i", { "aria-hidden": true }, SIGNS[notice.level]);
  return h("p", { class: `calro-${notice.level}`, title: words }, sign, words);
}

/** What an exception of the server says, as a notice. */
export const failure = (message) => ({ kind: "refused", level: "error", values: { text: message?.trim() } });

/** Each notice once, in the order of the lists. */
export function merge(...lists) {
  const all = lists.flatMap((list) => list ?? []);
  return [...new Map(all.map((notice) => [sentence(notice), notice])).values()];
}
