"""The end of a long run: the tab's title and a notification, neither for short runs nor without being asked."""

from __future__ import annotations

from calibrated_rounding.tools.comfyui.browser import Site

PRETEND = """() => {
  window.told = [];
  window.Notification = class {
    static permission = "default";
    static requestPermission = async () => (window.Notification.permission = "granted");
    constructor(title, { body }) { window.told.push(body); }
    addEventListener() {}
  };
  Object.defineProperty(document, "hidden", { get: () => window.away ?? false, configurable: true });
  Object.defineProperty(window, "isSecureContext", { get: () => true, configurable: true });
}"""
RUN = """async ([seconds, end]) => {
  const { api } = await import("/scripts/api.js");
  const { joined } = await import("/extensions/calibrated-rounding/finished.mjs");
  const { now } = performance;
  api.dispatchEvent(new CustomEvent("execution_start", { detail: {} }));
  joined();
  performance.now = () => now.call(performance) + 1000 * seconds;
  window.away = true;
  api.dispatchEvent(new CustomEvent(end, { detail: {} }));
  performance.now = now;
  const title = document.title;
  window.away = false;
  document.dispatchEvent(new Event("visibilitychange"));
  return [title, document.title, window.told.splice(0)];
}"""


def test_end_of_long_run_is_told(site: Site) -> None:
    site.page.evaluate(PRETEND)
    marked, after, told = site.page.evaluate(RUN, [100, "execution_success"])
    assert marked.startswith("● Quantization has finished") and not after.startswith("●")
    assert told == [], "nobody has asked for notifications"
    site.page.evaluate("() => import('/extensions/calibrated-rounding/finished.mjs').then(({ ask }) => ask())")
    assert site.page.evaluate(RUN, [100, "execution_success"])[2] == ["Quantization has finished"]
    assert site.page.evaluate(RUN, [100, "execution_error"])[2] == ["Quantization has failed"]
    short, _, told = site.page.evaluate(RUN, [10, "execution_success"])
    assert not short.startswith("●") and told == []
