// The errors of a layer or of a whole report (quant/layer/layer_errors.py): pairs {error, nearest}, null if not measured.

import { percent, text } from "./text.mjs";

/** The most telling pair first. */
export const PAIRS = ["output_w8a8", "output_w8a16", "weight", "projected"];

/** The pair that judges: the output error (W8A8) if it was measured, else the weight error. */
export const primary = (errors) => errors.output_w8a8 ?? errors.weight;

/** What bars, the worst layer and the last error go by. */
export const primaryError = (layer) => primary(layer.errors).error;

/** Against nearest rounding, in words; null if no rounding was tried that could differ. */
export function verdict({ error, nearest }) {
  if (error === nearest || !nearest) return null;
  const gain = 1 - error / nearest;
  return text(gain > 0 ? "closer" : "further", { share: percent(Math.abs(gain)) });
}

/** A relative error as a signal-to-noise ratio; null for no error at all. */
export const toDecibels = (error) => (error > 0 ? -20 * Math.log10(error) : null);
