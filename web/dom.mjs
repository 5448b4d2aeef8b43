// Elements without a framework. Text is always set as text, never parsed.

import { text } from "./text.mjs";

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; attributes that begin with "on" are listeners, null and false ones are left out. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A short text whose end matters more than its beginning, as with layer names; all of it is in the tooltip. */
export function tail(words, title = words) {
  return h("bdi", { class: "calro-tail", title }, h("bdi", {}, words));
}

/** A dialog over the page that closes by Escape, by a click beside it and by its cross; gone when it is closed. */
export function dialog(kind, title, beside, ...content) {
  const close = h("button", { type: "button", class: "calro-close", "aria-label": text("close") }, "✕");
  const head = h("header", {}, h("h2", {}, title), h("span", {}, beside), close);
  const opened = h("dialog", { class: `calro calro-report ${kind}`, "aria-label": `${title}: ${beside}` }, head, ...content);
  close.addEventListener("click", () => opened.close());
  opened.addEventListener("close", () => opened.remove());
  opened.addEventListener("click", (event) => event.target === opened && opened.close());
  // The page's own shortcuts stay out of what is typed here.
  for (const name of ["keydown", "keyup", "keypress", "wheel", "paste", "copy"]) {
    opened.addEventListener(name, (event) => event.stopPropagation());
  }
  document.body.append(opened);
  opened.showModal();
  return opened;
}

/** Load the pack's style sheet once. */
export function loadStyle() {
  const href = new URL("style.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) document.head.append(h("link", { rel: "stylesheet", href }));
}
