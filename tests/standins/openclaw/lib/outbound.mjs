/** Durable sends: an intent is on the disk before the channel is asked, and one whose sending has begun is never sent again. */
import { join } from "node:path";
import { Log } from "./disk.mjs";
import { reach, violation } from "./stages.mjs";

export class Outbound {
  #log;
  #states = new Map();
  #senders;
  #busy = new Set();

  /** `senders[channel]({to, text, accountId, id, onSent})` sends one text, telling each message that it takes, or throws. */
  constructor({ directory, senders }) {
    this.#log = new Log(join(directory, "delivery/intents.jsonl"));
    this.#senders = senders;
    for (const { id, state } of this.#log.read()) this.#states.set(id, state);
  }

  async send({ channel, to, accountId, payloads, deliveryIntentId: id, reusePendingDeliveryIntent }) {
    if (!Array.isArray(payloads) || !payloads.length) throw new Error("sendDurableMessageBatch: no payloads");
    if (typeof to !== "string" || !to) throw new Error("sendDurableMessageBatch: to is missing");
    if (!id) violation("a send without an intent id is not durable", { channel });
    if (id && this.#busy.has(id)) return { status: "suppressed", reason: "no_visible_result", results: [] };
    this.#busy.add(id);
    try {
      return await this.#send({ channel, to, accountId, payloads, id, reusePendingDeliveryIntent });
    } catch (error) {
      return { status: "failed", error };
    } finally {
      this.#busy.delete(id);
    }
  }

  async #send({ channel, to, accountId, payloads, id, reusePendingDeliveryIntent }) {
    const before = id && this.#states.get(id);
    if (before === "sent") return { status: "suppressed", reason: "no_visible_result", results: [] };
    // An id whose sending has begun is never given to a channel again, whether it failed or the process died in it.
    if (before === "begun" || (before && !reusePendingDeliveryIntent)) throw new Error(`Stable delivery intent is already queued: ${id}`);
    const sender = this.#senders[channel];
    if (!sender) throw new Error(`Unknown channel: ${channel}`);
    if (id) this.#record(id, "begun");
    const results = [];
    try {
      reach("sending");
      for (const { text } of payloads) await sender({ to, text, accountId, id, onSent: (result) => results.push(result) });
      reach("sent");
    } catch (error) {
      if (id && !results.length && neverConnected(error)) this.#record(id, "unsent");
      return results.length ? { status: "partial_failed", error, results, sentBeforeError: true } : { status: "failed", error };
    }
    if (id) this.#record(id, "sent");
    reach("send-recorded");
    return { status: "sent", results };
  }

  #record(id, state) {
    this.#states.set(id, state);
    this.#log.append({ id, state });
  }
}

/** The only failure that proves that the channel has not seen the message. */
function neverConnected(error) {
  const causes = [error, error.cause, ...(error.cause?.errors ?? [])];
  return causes.some((cause) => ["connect", "getaddrinfo"].includes(cause?.syscall) || cause?.code === "UND_ERR_CONNECT_TIMEOUT");
}
