// Every format on this machine, from the server (nodes/page/formats_here.py): what a weight takes, how close the shipped
// model came to its original, and how the machine runs it.

import { api } from "../../scripts/api.js";
import { choose } from "./beside.mjs";
import { dialog, h } from "./dom.mjs";
import { sentence } from "./notices.mjs";
import { legend } from "./palette.mjs";
import { Table } from "./table.mjs";
import { settingNode } from "./target.mjs";
import { decibels, hundredths, text } from "./text.mjs";

const KINDS = ["runs_here", "saves_memory_here", "format_unknown_here"];

/** Whether a notice says how the machine runs a format. */
export const saysHow = ({ kind }) => KINDS.includes(kind);

/** The button behind the words about the chosen format. */
export const formatsButton = (node, weightOnly) =>
  h(
    "button",
    { type: "button", class: "calro-link", title: text("which_format_help"), onclick: () => openFormats(node, weightOnly) },
    text("which_format"),
  );

/** node: whose format a row can set. weightOnly: as text encoders run in the formats. */
export async function openFormats(node, weightOnly) {
  const answer = await api.fetchApi(`/calibrated_rounding/formats?weight_only=${weightOnly ? 1 : 0}`);
  if (!answer.ok) return;
  const { device, formats } = await answer.json();
  const owner = settingNode(node);
  const use = (format) => {
    choose(owner, "format", format);
    opened.close();
  };
  const table = new Table(columns(owner && use), (row) => table.mark(row));
  const place = h("div", { class: "calro-layers" }, table.element);
  const opened = dialog("calro-formats", text("formats_on", { device }), node.title, place, h("p", {}, text("about_db")));
  table.show(formats);
}

/** use(name): what the button of a row does; null for no buttons. */
function columns(use) {
  const optional = (value) => (value == null ? "–" : decibels(value));
  const figure = (key, label, shown) => ({
    label: text(label),
    kind: "calro-number",
    number: true,
    value: (row) => row[key] ?? -Infinity,
    shown: (row) => shown(row[key]),
  });
  const here = (row) => row.notices.map(words).join(" ");
  return [
    { label: text("column_format"), value: ({ name }) => name, shown: ({ name }) => legend(name) },
    figure("bytes", "column_bits_each", hundredths),
    { label: text("column_here"), value: here, shown: here, kind: "calro-here" },
    { ...figure("nearest", "column_db_nearest", optional), about: text("about_db") },
    { ...figure("calibrated", "column_db_calibrated", optional), about: text("about_db") },
    ...(use ? [{ label: "", value: () => 0, shown: ({ name }) => useButton(name, use) }] : []),
  ];
}

/** The notice without the format's name before its colon, which stands beside it. */
const words = (notice) => sentence(notice).replace(/^[\w, ]+\s*[:：]\s*/, "").replace(/[.。]$/, "");

function useButton(name, use) {
  const title = text("use_format_help", { format: name });
  const press = (event) => {
    event.stopPropagation();
    use(name);
  };
  return h("button", { type: "button", title, onclick: press }, text("use_format"));
}
