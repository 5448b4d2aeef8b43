// Elements without a framework. Text is always set as text, never parsed.

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
export function tail(text, title = text) {
  return h("bdi", { class: "calro-tail", title }, h("bdi", {}, text));
}

/** Load the pack's style sheet once. */
export function loadStyle() {
  const href = new URL("style.css", import.meta.url).href;
  if (!document.querySelector(`link[href="${href}"]`)) document.head.append(h("link", { rel: "stylesheet", href }));
}
