// A file that is dropped and in no model folder: the server asks for the few bytes that it needs, and gets only these.

import { api } from "../../scripts/api.js";
import { text } from "./text.mjs";

const FIRST = 65_536; // bytes that are sent first: most headers
const ROUNDS = 8; // messages about one file, at most

/** What the server knows of a file that only the page can read; as `/inspect` of one in a model folder. */
export async function describeDropped(file) {
  let ranges = [[0, Math.min(file.size, FIRST)]];
  for (let round = 0; round < ROUNDS; round++) {
    const answer = await ask(await pack(file, ranges));
    if (!answer.send) return answer;
    ranges = answer.send;
  }
  throw unreadable(file);
}

async function ask(body) {
  const headers = { "Content-Type": "application/octet-stream" };
  const answer = await api.fetchApi("/calibrated_rounding/inspect_dropped", { method: "POST", headers, body });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** A message as `PartialFile.from_message` (quant/files/partial.py) reads it. */
async function pack(file, ranges) {
  const stated = new TextEncoder().encode(JSON.stringify({ name: file.name, size: file.size, ranges }));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(stated.length), true);
  const pieces = ranges.map(([start, end]) => file.slice(start, end));
  try {
    return await new Blob([length, stated, ...pieces]).arrayBuffer();
  } catch {
    throw unreadable(file);
  }
}

const unreadable = ({ name }) => new Error(text("file_unreadable", { file: name }));
