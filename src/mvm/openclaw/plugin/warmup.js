/**
 * The first turn, before a machine's memory is kept to be copied: everything that a turn loads is loaded then. It goes on
 * in a session of its own that is deleted afterwards, so that no person ever meets it.
 */
import { randomUUID } from "node:crypto";
import { runTurn } from "./turn.js";

const SESSION = "agent:main:mvm-warm-up";
const TEXT = "Say that you are warmed up.";
/** An emulated machine takes a minute or more for its first turn. */
export const WARM_UP_MS = 800_000;

/** Run it. Throws when the turn fails or its session cannot be deleted. */
export async function warmUp({ gateway, runId = `mvm-warm-up-${randomUUID()}`, limitMs = WARM_UP_MS }) {
  const { text } = await runTurn({
    open: (onEvent) => gateway.open(onEvent),
    sessionKey: SESSION,
    runId,
    text: TEXT,
    deadline: Date.now() + limitMs,
  });
  if (!text) throw new Error("the turn ended without an answer");
  await gateway.call("sessions.delete", { key: SESSION, deleteTranscript: true });
  return { ok: true };
}
