/**
 * The first turn, before a machine's memory is kept to be copied: everything that a turn loads is loaded then. It goes on
 * in an incognito session, which OpenClaw keeps in memory alone and which is deleted afterwards: no history, no archive, no
 * index has a word of it, and no person ever meets it.
 */
import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { runTurn } from "./turn.js";

const KEPT_SESSION = "agent:main:mvm-warm-up";
const TEXT = "Say that you are warmed up.";
/** An emulated machine takes a minute or more for its first turn. */
export const WARM_UP_MS = 800_000;

/** Run it. Throws when the turn fails or its session cannot be made or deleted. */
export async function warmUp({ gateway, runId = `mvm-warm-up-${randomUUID()}`, limitMs = WARM_UP_MS }) {
  const deadline = Date.now() + limitMs;
  // Whatever is asked for the first time loads its code first: each request may take as long as all of it.
  const ask = (method, params) => gateway.call(method, params, limitMs);
  const { key } = await ask("sessions.create", { agentId: "main", incognito: true });
  try {
    const { text } = await runTurn({
      open: (onEvent) => gateway.open(onEvent),
      sessionKey: key,
      runId,
      text: TEXT,
      deadline,
    });
    if (!text) throw new Error("the turn ended without an answer");
  } finally {
    await ask("sessions.delete", { key });
  }
  // Nobody has said anything in this one; it is for what OpenClaw opens and makes for a session that is kept.
  const kept = await ask("sessions.create", { agentId: "main", key: KEPT_SESSION });
  const { archived = [] } = await ask("sessions.delete", { key: kept.key, deleteTranscript: true });
  for (const file of archived) await rm(file, { force: true });
  return { ok: true };
}
