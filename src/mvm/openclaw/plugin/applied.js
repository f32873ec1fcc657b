/** Whether OpenClaw goes by the configuration that is in its file: it notices a change by itself, some time later. */
import { readFile } from "node:fs/promises";
import { pause } from "./order.js";

const POLL_MS = 50;

/** Return when `current()` is what the file at `path` says; throws when it is not so within `limitMs`. */
export async function configApplied({ path, current, limitMs = 80_000 }) {
  for (const deadline = Date.now() + limitMs; ; ) {
    const place = difference(current(), JSON.parse(await readFile(path, "utf8")));
    if (place === null) return;
    if (Date.now() > deadline) throw new Error(`the configuration was not taken in: ${place || "all of it"} is another`);
    await pause(POLL_MS);
  }
}

/** Where something `wanted` is not so in `actual`, which has defaults besides, and secrets for references; null: nowhere. */
export function difference(actual, wanted, place = "") {
  if (wanted === null || typeof wanted !== "object") return actual === wanted ? null : place;
  if (isReference(wanted)) return null;
  if (actual === null || typeof actual !== "object" || Array.isArray(actual) !== Array.isArray(wanted)) return place;
  if (Array.isArray(wanted) && actual.length !== wanted.length) return place;
  for (const key of Object.keys(wanted)) {
    const found = difference(actual[key], wanted[key], place ? `${place}.${key}` : key);
    if (found !== null) return found;
  }
  return null;
}

function isReference(value) {
  return typeof value.source === "string" && typeof value.provider === "string" && typeof value.id === "string";
}
