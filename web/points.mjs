// A drawing of points that the pointer and the arrow keys go through, with a line of words below it.

import { HEIGHT } from "./axes.mjs";
import { h, s } from "./dom.mjs";

const NEAR = 24; // pixels

export class Points {
  /**
   * title, help (for screen readers), hint: words. said(item): the words about a point. chosen(item): the user went to
   * it. taken(item): the user clicked it, or pressed Enter at it. draw(width): called when there is another width to
   * draw for.
   */
  constructor({ title, help, hint, said, chosen, taken = () => {}, draw, kind = "" }) {
    Object.assign(this, { hint, said, chosen, taken, faded: () => false, marked: null, points: new Map() });
    this.drawing = s("svg", {
      tabindex: 0,
      role: "application",
      "aria-label": help,
      height: HEIGHT,
      onpointermove: (event) => this.#say(this.#near(event)),
      onpointerleave: () => this.#say(null),
      onclick: (event) => this.#take(this.#near(event)),
      onkeydown: (event) => this.#key(event),
    });
    this.words = h("div", { class: "calro-said", role: "status" });
    this.element = h("div", { class: `calro-chart ${kind}` }, h("h3", {}, title), this.drawing, this.words);
    new ResizeObserver(() => this.width && draw(this.width)).observe(this.element);
  }

  get width() {
    return this.element.clientWidth;
  }

  /** below: what is drawn under the points. points: item -> {x, y, circle}, from the left to the right. */
  show(below, points) {
    this.points = points;
    const circles = Array.from(points.values(), ({ circle }) => circle);
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.drawing.replaceChildren(...below, s("g", {}, ...circles));
    this.mark(this.marked);
    this.fade(this.faded);
  }

  /** Draw the points that `faded` tells faintly. */
  fade(faded) {
    this.faded = faded;
    this.points.forEach(({ circle }, item) => circle.classList.toggle("calro-faded", faded(item)));
  }

  mark(item) {
    this.points.get(this.marked)?.circle.classList.remove("calro-marked");
    this.marked = item;
    const circle = this.points.get(item)?.circle;
    circle?.classList.add("calro-marked");
    circle?.parentNode.append(circle);
    this.#say(null);
  }

  #near(event) {
    const box = this.drawing.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = [NEAR, null];
    for (const [item, point] of this.points) {
      const distance = Math.hypot(point.x - x, point.y - y);
      if (distance < best[0] && !this.faded(item)) best = [distance, item];
    }
    return best[1];
  }

  #choose(item) {
    if (item) this.chosen(item);
  }

  #take(item) {
    this.#choose(item);
    if (item) this.taken(item);
    this.#say(item);
  }

  #key(event) {
    if (event.key === "Enter") this.#take(this.marked);
    const order = [...this.points.keys()].filter((item) => !this.faded(item));
    const here = order.indexOf(this.marked);
    const next = {
      ArrowRight: here + 1,
      ArrowLeft: here < 0 ? order.length - 1 : here - 1,
      Home: 0,
      End: order.length - 1,
    };
    if (!(event.key in next)) return;
    event.preventDefault();
    this.#choose(order[Math.max(0, Math.min(order.length - 1, next[event.key]))]);
  }

  #say(item) {
    const named = item ?? this.marked;
    this.words.textContent = named ? this.said(named) : this.hint;
    this.words.title = this.words.textContent;
  }
}
