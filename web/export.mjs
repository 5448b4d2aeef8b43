// A report as a file: JSON as the command line writes it, and its layers as CSV.

import { h } from "./dom.mjs";
import { PAIRS } from "./errors.mjs";
import { sentence } from "./notices.mjs";

/** The report without what only the page needs. */
export function toJson({ from_disk: _, notices: __, saved: ___, ...report }) {
  return JSON.stringify(report, null, 1);
}

/** One line for each layer, with a head (RFC 4180). Names come from files: what a spreadsheet would run stays text. */
export function toCsv(layers) {
  if (!layers.length) return "";
  const rows = layers.map(cells);
  const lines = [Object.keys(rows[0]), ...rows.map(Object.values)];
  return lines.map((line) => line.map(quote).join(",") + "\r\n").join("");
}

/** A layer's cells by column; the two errors of a pair are called like the pair, a dot, and `error` or `nearest`. */
function cells({ errors, notes, shape, ...layer }) {
  const { fell_back, seconds } = errors;
  const named = (name) => ["error", "nearest"].map((figure) => [`${name}.${figure}`, errors[name]?.[figure]]);
  const pairs = Object.fromEntries(PAIRS.flatMap(named));
  const { name, format, group, bytes_before, bytes_after, reason, effect } = layer;
  const first = { name, shape: shape.join("x"), format, group, bytes_before, bytes_after };
  return { ...first, ...pairs, effect, fell_back, seconds, reason, notes: notes.map(sentence).join("; ") };
}

function quote(value) {
  const written = typeof value === "string" ? inert(value) : String(value ?? "");
  return /[",\r\n]/.test(written) ? `"${written.replaceAll('"', '""')}"` : written;
}

/** A text without control characters that no spreadsheet takes for a formula. */
function inert(text) {
  const escaped = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;
  const line = text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, escaped);
  return /^[=+\-@]/.test(line) ? `'${line}` : line;
}

export function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
