// What the server says of a quantize node before it runs (nodes/page/check.py). Asked when something that matters has changed:
// at once after a rest, so that a single change is answered soon, else when it has stayed the same for a moment.

import { api } from "../../scripts/api.js";
import { linked, loadedFile, source, values } from "./graph.mjs";

const RECIPE = "CalibratedRoundingRecipe";
const RESTING = 400; // milliseconds

/** What to ask about a node, null where its settings are out of sight. */
export function question(node, kind) {
  const recipe = linked(node, "recipe") ? source(node, "recipe") : node;
  if (recipe !== node && recipe?.comfyClass !== RECIPE) return null;
  const own = kind.whole ? { file: values(node).file } : {};
  return {
    values: { ...values(recipe), ...own },
    file: kind.loads ? loadedFile(node, kind.loads) : null,
    whole: Boolean(kind.whole),
    weight_only: kind.loads === "CLIP",
    calibration: linked(node, "calibration") || Boolean(calibrationFile(node)),
    recorded: calibrationFile(node) ?? recorded(source(node, "calibration")),
  };
}

/** What to ask about a node that quantizes several models to one size. */
export function joint(node) {
  if (!linked(node, "recipe")) return { together: null };
  const recipe = source(node, "recipe");
  return recipe?.comfyClass === RECIPE ? { together: values(recipe) } : null;
}

/** The calibration file that the node itself names, null for none. */
function calibrationFile(node) {
  const { calibration_file: name } = values(node);
  return name && name !== "none" ? name : null;
}

/** What is known of a linked calibration: its file, or whether it will have sensitivities. */
function recorded(node) {
  if (node?.comfyClass === "CalibratedRoundingLoadCalibration") return values(node).file;
  return node?.comfyClass === "CalibratedRoundingCalibrateModel" && values(node).probe_steps > 0;
}

async function ask(asked) {
  const answer = await api.fetchApi("/calibrated_rounding/check", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
  });
  return answer.ok ? answer.json() : null;
}

/** Watches a node's settings; `look` is to be called often, `found` gets the answer, or null where there is none. */
export class Watch {
  constructor(found) {
    Object.assign(this, { found, seen: "", since: 0, answered: "", shown: "" });
  }

  /** Whether what was found last is the answer to what was asked last. */
  get isFresh() {
    return this.shown === this.seen;
  }

  look(asked) {
    const [now, time] = [JSON.stringify(asked), performance.now()];
    const [changed, rested] = [now !== this.seen, time - this.since > RESTING];
    if (changed) Object.assign(this, { seen: now, since: time });
    if (rested && now !== this.answered) this.#answer(asked, now);
  }

  async #answer(asked, now) {
    this.answered = now;
    const answer = asked && (await ask(asked).catch(() => null));
    if (this.seen !== now) return;
    this.shown = now;
    this.found(answer);
  }
}
