/** Points at which a test can have the process killed, as a power cut would: no cleanup, nothing flushed. */
import { appendFileSync, existsSync, mkdirSync, readFileSync, unlinkSync } from "node:fs";
import { join } from "node:path";

export const STAGES = [
  "update-spooled", // gateway: the update is on the disk, its offset is not confirmed yet
  "dispatching", // gateway: before the plugin is asked
  "sending", // gateway: before the Bot API is asked to send
  "sent", // gateway: the Bot API has taken it, the own record has not been written
  "send-recorded", // gateway: the own record is written, the plugin does not know yet
  "dispatched", // gateway: the plugin is done, the update is not marked as done
  "turn-accepted", // worker: the message is in the transcript, the sender has no answer yet
  "turn-started", // worker: before the model is asked
  "model-answered", // worker: the answer is there, the transcript does not have it
  "turn-recorded", // worker: the transcript has the answer, nobody was told
  "suspended", // both: the suspension is ready, its caller does not know yet
];

let directory = null;

export function useDirectory(path) {
  directory = path;
}

/** Die here when the test wants it. */
export function reach(stage) {
  if (!STAGES.includes(stage)) throw new Error(`unknown stage ${stage}`);
  const file = join(directory, "kill-at");
  if (!existsSync(file) || readFileSync(file, "utf8").trim() !== stage) return;
  unlinkSync(file);
  process.kill(process.pid, "SIGKILL");
  // The signal is delivered asynchronously; nothing after this point may happen.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}

/** Note that a rule of the real OpenClaw was broken. */
export function violation(rule, detail = {}) {
  mkdirSync(directory, { recursive: true });
  appendFileSync(join(directory, "violations.jsonl"), `${JSON.stringify({ at: new Date().toISOString(), rule, ...detail })}\n`);
}

/** A number a test has put into a file of the directory, else `otherwise`. */
export function setting(name, otherwise) {
  const file = join(directory, name);
  return existsSync(file) ? Number(readFileSync(file, "utf8")) : otherwise;
}
