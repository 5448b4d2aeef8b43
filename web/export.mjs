// A report as a file: JSON as the command line writes it, and its layers as CSV.

import { h } from "./dom.mjs";

/** The report without what only the page needs. */
export function toJson({ from_disk: _, said: __, file: ___, ...report }) {
  return JSON.stringify(report, null, 1);
}

/** One line for each layer, with a head (RFC 4180). */
export function toCsv(layers) {
  if (!layers.length) return "";
  const keys = Object.keys(layers[0]);
  const lines = [keys, ...layers.map((layer) => keys.map((key) => cell(key, layer[key])))];
  return lines.map((line) => line.map(quoted).join(",") + "\r\n").join("");
}

function cell(key, value) {
  if (!Array.isArray(value)) return value ?? "";
  return value.join(key === "shape" ? "x" : "; ");
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
