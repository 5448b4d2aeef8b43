// Files that a node has written: their lines, and what can be done with one: copy its path, or load it in this graph.

import { app } from "../../scripts/app.js";
import { addBeside, choose } from "./beside.mjs";
import { h, tail } from "./dom.mjs";
import { download } from "./export.mjs";
import { bytes, text } from "./text.mjs";

const SAID = 1500; // milliseconds that a button says what it has done

/** files: [{path, nbytes, loader}] (nodes/page/saved.py). node: the node that wrote them. */
export function fileLines(files, node) {
  return files.flatMap((file) => [
    fileLine(file),
    h("div", { class: "calro-buttons" }, ...buttons(file, node)),
  ]);
}

export const fileLine = ({ path, nbytes }) =>
  h("div", { class: "calro-file" }, tail(path), h("b", {}, bytes(nbytes)));

function buttons(file, node) {
  const copy = button(text("copy_path"), text("copy_path_help"), () => copyText(file.path));
  return [copy, ...fileButtons(file, node)];
}

/** For a file that a node has written: its model card, and a loader. */
export function fileButtons({ path, loader, card }, node) {
  return [...(card ? [cardButton(path, card)] : []), ...(loader ? [loaderButton(loader, node)] : [])];
}

/** Keeps the Markdown text that describes the file for others. */
export function cardButton(path, card) {
  const name = path.split(/[\\/]/).at(-1).replace(/\.\w+$/, "");
  return button(text("model_card"), text("model_card_help"), () => download(`${name}.md`, "text/markdown", card));
}

function loaderButton(loader, node) {
  const title = text("add_loader_help", { file: loader.value });
  return button(text("add_loader"), title, () => addLoader(node, loader));
}

/** A button that says for a moment that it has worked. */
export function button(label, title, act) {
  const said = () => {
    element.textContent = text("button_done");
    setTimeout(() => (element.textContent = label), SAID);
  };
  const element = h("button", { type: "button", title, onclick: async () => (await act()) !== false && said() }, label);
  return element;
}

/** The clipboard is only given to pages from this machine or over https; elsewhere the old way still works. */
export async function copyText(words) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(words);
  const area = h("textarea", { style: "position: fixed; opacity: 0" });
  area.value = words;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

/** Fetch the lists of files again, as the key R does, so that loaders offer new files. */
export function refreshLists() {
  const refresh = app.reloadNodeDefs ?? app.refreshComboInNodes;
  return Promise.resolve(refresh?.call(app)).catch((error) => console.warn("calibrated-rounding: lists", error));
}

/** Put a loader with the file beside the node; a selected loader of the kind takes the file instead. */
function addLoader(node, { node: type, widget, value }) {
  const selected = Object.values(app.canvas.selected_nodes ?? {}).find((other) => other.type === type);
  if (!selected) return addBeside(node, type, (created) => choose(created, widget, value)) !== null;
  choose(selected, widget, value);
  return true;
}
