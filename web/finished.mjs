// The end of a long run, for a user who looks elsewhere: the tab's title, and a notification if the user has asked for it.

import { api } from "../../scripts/api.js";
import { text } from "./text.mjs";

const LONG = 60_000; // milliseconds: shorter runs end in silence
const ENDS = { execution_success: "run_finished", execution_error: "run_failed" };

let started = null;
let ours = false;

/** Whether the browser can notify and has not been asked yet. */
export const mayAsk = () => window.isSecureContext && window.Notification?.permission === "default";

/** Only from a button: browsers punish pages that ask by themselves. */
export const ask = () => window.Notification.requestPermission();

/** A node of the pack works in the prompt that runs. */
export function joined() {
  ours = true;
}

export function watchEnds() {
  api.addEventListener("execution_start", () => {
    [started, ours] = [performance.now(), false];
  });
  for (const [event, key] of Object.entries(ENDS)) api.addEventListener(event, () => finish(key));
}

function finish(key) {
  const long = ours && started !== null && performance.now() - started > LONG;
  started = null;
  if (!long || !document.hidden) return;
  const words = text(key);
  if (window.Notification?.permission === "granted") notify(words);
  mark(words);
}

function notify(words) {
  const shown = new window.Notification("ComfyUI", { body: words, tag: "calibrated-rounding" });
  shown.addEventListener("click", () => window.focus());
}

/** The title says it until the user comes back. */
function mark(words) {
  const before = document.title;
  const marked = `● ${words} – ${before}`;
  document.title = marked;
  const restore = () => {
    if (document.hidden) return;
    document.removeEventListener("visibilitychange", restore);
    if (document.title === marked) document.title = before;
  };
  document.addEventListener("visibilitychange", restore);
}
