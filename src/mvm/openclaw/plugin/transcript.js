/** What a worker's transcript tells of a turn. Pure: values in, values out. */
import { cut, RUN_PREFIX, textOf } from "./message.js";

/**
 * What the transcript says of our message: whether it is there (`asked`), the last finished assistant `text` that answers
 * it, and the `error` of the last attempt at it (null while there is none).
 *
 * The answer ends at the next message that the gateway sent. OpenClaw's own user messages (it tells a turn that a restart
 * interrupted to go on; a reminder fires) end it only once there is one: the recovered turn answers after such a message.
 */
export function findAnswer(messages, runId) {
  const at = messages.findLastIndex((message) => message?.idempotencyKey === `${runId}:user`);
  if (at < 0) return { asked: false, text: null, error: null };
  let text = null;
  let error = null;
  for (const message of messages.slice(at + 1)) {
    if (message?.role === "user") {
      const key = typeof message.idempotencyKey === "string" ? message.idempotencyKey : "";
      if (key.startsWith(RUN_PREFIX) || (key && text !== null)) break;
    }
    if (message?.role !== "assistant") continue;
    if (message.stopReason === "error") error = cut(message.errorMessage ?? "the turn failed", 300);
    if (message.stopReason !== undefined && !["stop", "end_turn", "length"].includes(message.stopReason)) continue;
    text = textOf(message) || text;
  }
  return { asked: true, text, error };
}
