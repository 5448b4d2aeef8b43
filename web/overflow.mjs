// Where a box has more to read below its edge, its last line fades, so that it is not taken for the end.

const ROUNDING = 2; // pixels by which sizes may differ without there being more

/** Mark a box that scrolls as long as there is something below what it shows. */
export function markOverflow(box) {
  const mark = () => {
    const below = box.scrollHeight - box.clientHeight - box.scrollTop;
    box.classList.toggle("calro-more", below > ROUNDING);
  };
  box.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(box);
  new MutationObserver(mark).observe(box, { childList: true, characterData: true, subtree: true });
  return box;
}

/** Whether a wheel's turn can scroll the box around an element. */
export function scrollsUnder({ target, deltaY, ctrlKey }) {
  const box = target.closest(".calro-notices, .calro-words");
  if (!box || ctrlKey) return false;
  const most = box.scrollHeight - box.clientHeight;
  return deltaY < 0 ? box.scrollTop > 0 : box.scrollTop < most - ROUNDING;
}
