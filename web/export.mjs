// A report as a file: JSON as the command line writes it, and its layers as CSV.

import { h } from "./dom.mjs";

/** The report without what only the page needs. */
export function toJson({ from_disk: _, said: __, file: ___, ...report }) {
  return JSON.stringify(report, null, 1);
}

/** One line for each layer, with a head (RFC 4180). Names come from files: what a spreadsheet would run stays text. */
export function toCsv(layers) {
  if (!layers.length) return "";
  const keys = Object.keys(layers[0]);
  const lines = [keys, ...layers.map((layer) => keys.map((key) => cell(key, layer[key])))];
  return lines.map((line) => line.map(quoted).join(",") + "\r\n").join("");
}

function cell(key, value) {
  if (Array.isArray(value)) return inert(value.join(key === "shape" ? "x" : "; "));
  return typeof value === "string" ? inert(value) : (value ?? "");
}

/** A text without control characters that no spreadsheet takes for a formula. */
function inert(text) {
  const escaped = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;
  const line = text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, escaped);
  return /^[=+\-@]/.test(line) ? `'${line}` : line;
}

function quoted(value) {
  const written = String(value);
  return /[",\r\n]/.test(written) ? `"${written.replaceAll('"', '""')}"` : written;
}

export function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
