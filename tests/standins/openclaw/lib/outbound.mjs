/** Durable sends: an intent is on the disk before the channel is asked, and a sent one is never sent again. */
import { join } from "node:path";
import { Log } from "./disk.mjs";
import { reach, violation } from "./stages.mjs";

export class Outbound {
  #log;
  #states = new Map();
  #senders;
  #busy = new Map();

  /** `senders[channel]({to, text, accountId, id})` sends one text, or throws. */
  constructor({ directory, senders }) {
    this.#log = new Log(join(directory, "delivery/intents.jsonl"));
    this.#senders = senders;
    for (const { id, state } of this.#log.read()) this.#states.set(id, state);
  }

  async send({ channel, to, accountId, payloads, deliveryIntentId: id, reusePendingDeliveryIntent }) {
    if (!Array.isArray(payloads) || !payloads.length) throw new Error("sendDurableMessageBatch: no payloads");
    if (typeof to !== "string" || !to) throw new Error("sendDurableMessageBatch: to is missing");
    if (!id) violation("a send without an intent id is not durable", { channel });
    if (id && this.#busy.has(id)) return this.#busy.get(id);
    const work = this.#send({ channel, to, accountId, payloads, id, reusePendingDeliveryIntent });
    if (id) this.#busy.set(id, work);
    try {
      return await work;
    } finally {
      this.#busy.delete(id);
    }
  }

  async #send({ channel, to, accountId, payloads, id, reusePendingDeliveryIntent }) {
    const before = id && this.#states.get(id);
    if (before === "sent") return { status: "suppressed", reason: "already-sent", results: [] };
    if (before === "pending" && !reusePendingDeliveryIntent) throw new Error(`Stable delivery intent is already queued: ${id}`);
    if (id) this.#record(id, "pending");
    const sender = this.#senders[channel];
    if (!sender) return { status: "failed", error: new Error(`Unknown channel: ${channel}`), results: [] };
    try {
      reach("sending");
      const results = [];
      for (const { text } of payloads) results.push(await sender({ to, text, accountId, id }));
      reach("sent");
      if (id) this.#record(id, "sent");
      reach("send-recorded");
      return { status: "sent", results };
    } catch (error) {
      return { status: "failed", error, results: [] };
    }
  }

  #record(id, state) {
    this.#states.set(id, state);
    this.#log.append({ id, state });
  }
}
