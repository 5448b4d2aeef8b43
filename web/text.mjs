// The words that the pack's front end shows, from locales/<language>/main.json, and numbers as the language writes them.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const KEY = "calibratedRounding";
let words = {};
let locale = "en";

/** Fetch the words of the language that the user has set; English where the pack lacks it. */
export async function loadWords() {
  locale = app.extensionManager?.setting?.get("Comfy.Locale") || "en";
  try {
    const all = await (await api.fetchApi("/i18n")).json();
    const languages = ["en", locale.split("-")[0], locale];
    words = Object.assign({}, ...languages.map((language) => all[language]?.[KEY]));
  } catch (error) {
    console.warn("calibrated-rounding: no translations", error);
  }
}

/** The sentence called `key`, with `{name}` replaced by values.name. */
export function text(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function number(value, digits = 3) {
  return value.toLocaleString(locale, { maximumSignificantDigits: digits });
}

/** A share in percent, with two digits. */
export const share = (value) => value.toLocaleString(locale, { style: "percent", maximumSignificantDigits: 2 });

const LEAST = 0.001;
const tenths = { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 };

/** A share of the whole in percent, for a column whose points stand below each other; not 0.0%, but less than 0.1%. */
export const portion = (value) =>
  value > 0 && value < LEAST / 2 ? `< ${LEAST.toLocaleString(locale, tenths)}` : value.toLocaleString(locale, tenths);

export const whole = (value) => Math.round(value).toLocaleString(locale);
export const percent = (share) => share.toLocaleString(locale, { style: "percent", maximumFractionDigits: 0 });
export const error = (value) =>
  value.toLocaleString(locale, { style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });
export const hundredths = (value) => value.toLocaleString(locale, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
export const decibels = (value) => value.toLocaleString(locale, { minimumFractionDigits: 1, maximumFractionDigits: 1 });

const UNITS = ["B", "kB", "MB", "GB", "TB"];

function unit(value) {
  return Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
}

export function bytes(value) {
  const step = unit(value);
  return `${number(value / 1000 ** step)} ${UNITS[step]}`;
}

/** Number and size of the layers that are kept in floating point. */
export const keptLayers = ({ kept_layers: layers, kept_bytes: size }) =>
  layers ? `${whole(layers)} (${bytes(size)})` : whole(0);

/** Two sizes in the larger one's unit, with as many digits. */
export function change(before, after) {
  const step = unit(Math.max(before, after));
  const digits = { minimumSignificantDigits: 3, maximumSignificantDigits: 3 };
  const [from, to] = [before, after].map((value) => (value / 1000 ** step).toLocaleString(locale, digits));
  return `${from} → ${to} ${UNITS[step]}`;
}

/** Two sizes as the ends of a range. */
export const range = (least, most) => change(least, most).replace("→", "–");

export function duration(seconds) {
  if (seconds < 10) return `${number(Math.max(seconds, 0.01), seconds < 1 ? 1 : 2)} s`;
  if (seconds < 100) return `${whole(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${number(minutes / 60, 2)} h`;
}
