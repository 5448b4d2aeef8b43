// What contrast.py measures on a page.

window.packContrast ??= (() => {
  const SIZE = 8;
  const context = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE }).getContext("2d", {
    willReadFrequently: true,
  });

  /** Red, green and blue of a colour over an opaque one, as the browser mixes them. */
  function over(colour, opacity, ground) {
    context.globalAlpha = 1;
    context.fillStyle = `rgb(${ground.join(" ")})`;
    context.fillRect(0, 0, SIZE, SIZE);
    context.globalAlpha = opacity;
    context.fillStyle = colour;
    context.fillRect(0, 0, SIZE, SIZE);
    return [...context.getImageData(1, 1, 1, 1).data.slice(0, 3)];
  }

  function opacityOf(element) {
    let product = 1;
    for (let part = element; part; part = part.parentElement) product *= Number(getComputedStyle(part).opacity);
    return product;
  }

  /** What the boxes around an element leave of a line in it; null if its height is cut or something lies over it. */
  function visiblePart(element, root, { left, top, right, bottom }) {
    for (let part = element; part && part !== document.body; part = part.parentElement) {
      if (getComputedStyle(part).overflowY === "visible") continue;
      const box = part.getBoundingClientRect();
      if (top < box.top - 1 || bottom > box.bottom + 1) return null;
      [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
    }
    if (right - left < 2) return null;
    const hit = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
    return root.contains(hit) ? { left, top, width: right - left, height: bottom - top } : null;
  }

  /** The texts below an element that can be seen: words, box in pixels, colour, opacity. */
  function* textsIn(root) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (walker.nextNode()) {
      const [words, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
      if (!words || element.closest(".calro-unseen, :disabled, option, defs, title")) continue;
      range.selectNodeContents(walker.currentNode);
      const line = range.getClientRects()[0];
      const box = line && visiblePart(element, root, line);
      if (!box) continue;
      const style = getComputedStyle(element);
      const colour = element.closest("svg") ? style.fill : style.color;
      yield { words, colour, opacity: opacityOf(element), ...box };
    }
    for (const input of root.querySelectorAll("input[placeholder]")) {
      const { color, opacity } = getComputedStyle(input, "::placeholder");
      const { left, top, width, height } = input.getBoundingClientRect();
      yield { words: input.placeholder, colour: color, opacity: Number(opacity), left, top, width, height };
    }
  }

  /** The colour of a CSS value inside an element, over an opaque colour. */
  function resolve(element, value, ground) {
    const probe = element.appendChild(Object.assign(document.createElement("i"), { hidden: true }));
    probe.style.color = value;
    const colour = over(getComputedStyle(probe).color, 1, ground);
    probe.remove();
    return colour;
  }

  return { over, resolve, listTexts: (selector) => [...document.querySelectorAll(selector)].flatMap((root) => [...textsIn(root)]) };
})();
