/**
 * Hand a text to a channel, once: a stable id lets OpenClaw's own outbound queue recognise what it has sent before, also
 * after it was killed in between.
 */
import { createHash } from "node:crypto";
import { sendDurableMessageBatch } from "openclaw/plugin-sdk/channel-outbound";
import { backoff, pause } from "./order.js";

const PREFIX = "mvm:";
const RETENTION = { idPrefix: PREFIX, maxAgeMs: 3 * 86_400_000, maxEntries: 5000 };
const GIVE_UP_MS = 15 * 60_000;

/** The channel did not take the text. */
export class NotSent extends Error {
  constructor(message) {
    super(message);
    this.name = "NotSent";
  }
}

export class Sender {
  #send;

  /** `currentConfig()` gives OpenClaw's configuration of the moment. */
  constructor({ currentConfig, send = sendDurableMessageBatch }) {
    this.currentConfig = currentConfig;
    this.#send = send;
  }

  /** Send once; throws `NotSent` when the channel refused. An id that was sent before is not sent again. */
  async send({ id, channel, account, to, text }) {
    const outcome = await this.#send({
      cfg: this.currentConfig(),
      channel,
      to,
      ...(account ? { accountId: account } : {}),
      payloads: [{ text }],
      deliveryIntentId: PREFIX + createHash("sha256").update(id).digest("hex"),
      reusePendingDeliveryIntent: true,
      completionRetention: RETENTION,
    });
    if (outcome.status !== "sent" && outcome.status !== "suppressed") {
      throw new NotSent(`${channel} did not take it: ${String(outcome.error?.message ?? outcome.status).slice(0, 200)}`);
    }
  }

  /** Send, and keep trying for a quarter of an hour: channels have their bad minutes. */
  async persist(message) {
    const until = Date.now() + GIVE_UP_MS;
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.send(message);
      } catch (error) {
        const wait = backoff(attempt, 500, 30_000);
        if (Date.now() + wait >= until) throw error;
        await pause(wait);
      }
    }
  }
}
