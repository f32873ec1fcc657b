/**
 * Turns that OpenClaw takes up again after it was killed. The gateway waits for their answer as for any other and brings
 * it; but once a reminder has gone out, OpenClaw holds the worker's channel for the place where the person is, announces
 * the recovery there and sends the answer there as well. The person would read it twice.
 */
import { CHANNEL } from "./person.js";

const RECOVERY = "main_session_restart_recovery";
const NOTICE = "I'm continuing your interrupted request now";
const REMEMBERED = 50;

export class Recovery {
  #runs = new Set();

  /** Look at a run that begins, with what OpenClaw says of its origin. */
  begins({ runId, inputProvenance }) {
    if (inputProvenance?.sourceTool !== RECOVERY || !runId) return;
    this.#runs.add(runId);
    if (this.#runs.size > REMEMBERED) this.#runs.delete(this.#runs.values().next().value);
  }

  /** True for the answer of such a run on its way to the channel: the gateway has it from the transcript. */
  isAnswer({ channelId, runId }) {
    return channelId === CHANNEL && this.#runs.has(runId);
  }

  /** True for OpenClaw's own words about it, which come without a run. */
  isNotice({ content }, { channelId }) {
    return channelId === CHANNEL && String(content).startsWith(NOTICE);
  }
}
