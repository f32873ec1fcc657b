/**
 * Reminders and other jobs that the assistant sets up for its person: make sure that they reach the person.
 *
 * OpenClaw would deliver to "the chat where you asked", which in a worker is no channel at all, and refuses to guess for
 * detached jobs. So the assistant's own request to the scheduler is completed before it is carried out: deliver to the
 * person, by the one channel there is.
 */
import { CHANNEL, PERSON } from "./person.js";

/** Name under which OpenClaw offers its scheduler to the model. */
export const SCHEDULER_TOOL = "automations";

/** The request with its delivery settled, or null when there is nothing to change. */
export function settleDelivery(params) {
  const field = params?.action === "add" ? "job" : params?.action === "update" ? updateField(params) : null;
  const job = field ? params[field] : null;
  if (!job || typeof job !== "object") return null;
  const settled = settleJob(job, params.action === "add");
  return settled ? { ...params, [field]: settled } : null;
}

function updateField(params) {
  return ["patch", "job"].find((name) => params[name] && typeof params[name] === "object") ?? null;
}

function settleJob(job, isNew) {
  const changes = {};
  if (job.payload?.kind === "systemEvent" || (isNew && job.sessionTarget === "main" && job.payload?.kind !== "script")) {
    // An event for the heartbeat, which is off in a worker: nobody would ever see it.
    const text = String(job.payload?.text ?? job.payload?.message ?? "");
    changes.payload = { kind: "agentTurn", message: `This is due now, tell the person: ${text}` };
    changes.sessionTarget = "current";
  }
  const mode = job.delivery?.mode ?? "announce";
  if (mode === "announce" && (isNew || job.delivery || changes.payload) && job.delivery?.channel !== CHANNEL) {
    changes.delivery = { ...(job.delivery?.bestEffort ? { bestEffort: true } : {}), mode: "announce", channel: CHANNEL, to: PERSON };
  }
  return Object.keys(changes).length ? { ...job, ...changes } : null;
}
