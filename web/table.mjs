// A table that is sorted by its heads and moves by the arrow keys.

import { h } from "./dom.mjs";

const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

export class Table {
  /**
   * columns: {key, label, about, value(row), shown(row), number, kind}; `value` is what is sorted by, `shown` a text or
   * an element, `about` a tooltip, `kind` a class; numbers are sorted downwards first.
   * chosen(row) is called when the user goes to a row.
   */
  constructor(columns, chosen) {
    Object.assign(this, { columns, chosen, rows: [], lines: new Map(), marked: null, by: null, down: false });
    this.heads = columns.map((column) => this.#head(column));
    this.body = h("tbody", { onkeydown: (event) => this.#key(event), onclick: (event) => this.#click(event) });
    this.element = h("table", {}, h("thead", {}, h("tr", {}, ...this.heads)), this.body);
  }

  show(rows) {
    this.rows = rows;
    this.#draw();
  }

  sort(column, down) {
    Object.assign(this, { by: column, down });
    this.columns.forEach((other, i) => {
      const order = other === column ? (down ? "descending" : "ascending") : "none";
      this.heads[i].setAttribute("aria-sort", order);
    });
    this.#draw();
  }

  /** Mark a row and bring it into sight; null marks none. */
  mark(row) {
    this.lines.get(this.marked)?.setAttribute("aria-selected", "false");
    this.marked = row;
    const line = this.lines.get(row);
    line?.setAttribute("aria-selected", "true");
    line?.scrollIntoView({ block: "nearest" });
    this.#stop(line);
  }

  #head(column) {
    const turn = () => this.sort(column, this.by === column ? !this.down : Boolean(column.number));
    const button = h("button", { type: "button", title: column.about, onclick: turn }, column.label);
    return h("th", { scope: "col", "aria-sort": "none", class: column.kind }, button);
  }

  #draw() {
    this.lines = new Map(this.#sorted().map((row) => [row, this.#line(row)]));
    this.body.replaceChildren(...this.lines.values());
    this.#stop(this.lines.get(this.marked));
  }

  #sorted() {
    if (!this.by) return this.rows;
    const { value } = this.by;
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    const turned = this.down ? -1 : 1;
    return [...this.rows].sort((a, b) => turned * order(value(a), value(b)));
  }

  #line(row) {
    const cells = this.columns.map((column) => h("td", { class: column.kind }, column.shown(row)));
    return h("tr", { tabindex: -1, "aria-selected": String(row === this.marked) }, ...cells);
  }

  /** The one row that the tab key stops at. */
  #stop(line) {
    this.body.querySelector('[tabindex="0"]')?.setAttribute("tabindex", -1);
    (line ?? this.body.firstChild)?.setAttribute("tabindex", 0);
  }

  #click(event) {
    this.#go(event.target.closest("tr"));
  }

  #key(event) {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const lines = [...this.body.children];
    const here = lines.indexOf(event.target.closest("tr"));
    this.#go(lines[Math.max(0, Math.min(lines.length - 1, here + STEPS[event.key]))]);
  }

  #go(line) {
    const found = [...this.lines].find(([, other]) => other === line);
    if (!found) return;
    line.focus({ preventScroll: true });
    this.chosen(found[0]);
  }
}
