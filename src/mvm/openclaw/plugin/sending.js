/**
 * Hand a text to a channel, once: a stable id lets OpenClaw's own outbound queue recognise what it has sent before, also
 * after it was killed in between.
 *
 * OpenClaw never gives an id to a channel again once that was asked to send it, whatever came of it. So each message has a
 * row of ids, always the same: one whose sending began and did not end well is passed by, one that was sent ends the row.
 */
import { createHash } from "node:crypto";
import { sendDurableMessageBatch } from "openclaw/plugin-sdk/channel-outbound";
import { cut } from "./message.js";
import { backoff, pause } from "./order.js";
import { isPermanent, isTaken, refusalOf, retryAfterMs } from "./refusals.js";

const PREFIX = "mvm:";
const RETENTION = { idPrefix: PREFIX, maxAgeMs: 3 * 86_400_000, maxEntries: 5000 };
const GIVE_UP_MS = 15 * 60_000;
const LONGEST_WAIT_MS = 30_000;
/** How often a message whose sending broke off, so that it may have arrived, is sent again: each time it may come twice. */
const REPEATS = 1;
/** Ids of one row that are tried in one go. */
const MAX_WALK = 1000;
/** Messages under way whose place in their row is remembered; without it the row is walked from its beginning. */
const MAX_REMEMBERED = 2000;

/**
 * The channel did not take the text. `refused`: it said so, and nothing of the text was shown; else it may have arrived.
 * `final`: sending it again would not help, or would go on repeating it.
 */
export class NotSent extends Error {
  constructor(message, { refused = false, final = false, taken = false, retryAfter = 0 } = {}) {
    super(message);
    this.name = "NotSent";
    this.refused = refused;
    this.final = final;
    this.taken = taken;
    this.retryAfter = retryAfter;
  }
}

export class Sender {
  #send;
  #pause;
  #underWay = new Map();
  #rows = new Map();

  /** `currentConfig()` gives OpenClaw's configuration of the moment. */
  constructor({ currentConfig, send = sendDurableMessageBatch, wait = pause }) {
    this.currentConfig = currentConfig;
    this.#send = send;
    this.#pause = wait;
  }

  /**
   * Ask the channel once; throws `NotSent`. A message that was sent before is not sent again, nor is one that is being
   * sent: OpenClaw would say of that that there is nothing to do, before it is known what comes of it.
   */
  send(message) {
    const { id } = message;
    const known = this.#underWay.get(id);
    if (known) return known;
    const work = this.#alongTheRow(message).finally(() => this.#underWay.delete(id));
    this.#underWay.set(id, work);
    return work;
  }

  /** Send, and keep trying for a quarter of an hour: channels have their bad minutes. */
  async persist(message) {
    const until = Date.now() + GIVE_UP_MS;
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.send(message);
      } catch (error) {
        // A connection that broke off is given longer to come back: its message is repeated but once.
        const wait = Math.max(backoff(attempt, error.refused ? 500 : 2000, LONGEST_WAIT_MS), error.retryAfter ?? 0);
        if (error.final || Date.now() + wait >= until) throw error;
        await this.#pause(wait);
      }
    }
  }

  async #alongTheRow(message) {
    const row = this.#rows.get(message.id) ?? { place: 0, repeats: 0, failure: null };
    this.#rows.delete(message.id);
    for (let asked = 0; asked < MAX_WALK; asked += 1) {
      const failure = await this.#ask(message, row.place);
      if (!failure) return;
      if (!failure.taken) {
        row.failure = failure;
        if (!failure.final) this.#remember(message.id, row);
        throw failure;
      }
      // OpenClaw keeps an id whose sending began. What failed before it began has its id still, and is no repetition.
      if (row.failure && !row.failure.refused) row.repeats += 1;
      if (row.repeats > REPEATS) throw new NotSent(`${row.failure.message}; it may have arrived, and is not repeated any more`, { final: true });
      row.failure = null;
      row.place += 1;
    }
    this.#remember(message.id, row);
    throw new NotSent(`${message.channel} did not take it: every id was used before`);
  }

  /** Resolves with null when the channel has it, else with what went wrong. */
  async #ask({ id, channel, account, to, text }, place) {
    const outcome = await this.#outcome({
      cfg: this.currentConfig(),
      channel,
      to,
      ...(account ? { accountId: account } : {}),
      payloads: [{ text }],
      deliveryIntentId: PREFIX + createHash("sha256").update(place ? `${id}#${place}` : id).digest("hex"),
      reusePendingDeliveryIntent: true,
      completionRetention: RETENTION,
    });
    if (outcome.status === "sent" || outcome.status === "suppressed") return null;
    const { error, status } = outcome;
    // Of a long text that was shown in part nothing tells which pieces are missing: it is repeated as a whole.
    const refusal = status === "partial_failed" ? null : refusalOf(error);
    return new NotSent(`${channel} did not take it: ${cut(error?.message ?? status, 300)}`, {
      taken: isTaken(error),
      refused: refusal !== null,
      final: refusal !== null && isPermanent(refusal),
      retryAfter: retryAfterMs(error),
    });
  }

  async #outcome(batch) {
    try {
      return await this.#send(batch);
    } catch (error) {
      return { status: "failed", error };
    }
  }

  #remember(id, row) {
    this.#rows.set(id, row);
    if (this.#rows.size > MAX_REMEMBERED) this.#rows.delete(this.#rows.keys().next().value);
  }
}
