/**
 * Role gateway: every message that any channel takes is handed to the worker of whoever wrote it.
 *
 * The one rule that nothing here may break: no turn ever runs inside the gateway. Whatever happens, the dispatch is
 * claimed; when a message cannot be delivered the person is told so.
 */
import { connect } from "./connection.js";
import { describe, isStop, runIdOf } from "./message.js";
import { readImages } from "./images.js";
import { KeyedQueue } from "./order.js";
import { readSecret } from "./router.js";
import { runTurn, TurnFailed } from "./turn.js";

/** All conversations of a person go on in one session of their worker, where reminders speak too. */
export const WORKER_SESSION = "agent:main:main";

const TYPING_MS = 4000;
const HELLO_TIMEOUT_MS = 20_000;

export const NOTICES = {
  unreachable: "Your assistant could not be reached just now. Please send your message again in a minute.",
  failed: "Your assistant could not answer this message: something went wrong on its side. Please try again.",
  stopped: "Stopped.",
  nothingRunning: "Nothing is running.",
  directOnly: null,
};

export class GatewayRole {
  #router;
  #activity;
  #log;
  #secretsDir;
  #wakeTimeoutMs;
  #turnTimeoutMs;
  #peers = new KeyedQueue();
  #workers = new KeyedQueue();
  #current = new Map();
  #serial = 0;

  constructor({ router, activity, log, secretsDir, wakeTimeoutMs, turnTimeoutMs }) {
    this.#router = router;
    this.#activity = activity;
    this.#log = log;
    this.#secretsDir = secretsDir;
    this.#wakeTimeoutMs = wakeTimeoutMs;
    this.#turnTimeoutMs = turnTimeoutMs;
  }

  /** Handler of the hook `reply_dispatch`: always claims the dispatch. */
  async dispatch(event, ctx) {
    const job = `delivery-${(this.#serial += 1)}`;
    const reply = new Reply(ctx);
    this.#activity.begin(job, "delivery");
    try {
      const message = describe(event);
      if (!message.direct) {
        // Only direct chats are served: in a group anyone could drive the owner's worker.
        reply.processed("skipped", "mvm_not_direct");
      } else if (event.sendPolicy === "deny") {
        reply.processed("skipped", "mvm_send_denied");
      } else {
        await this.#deliver(message, event, ctx, reply);
      }
    } catch (error) {
      this.#log.error(`a message could not be delivered: ${error?.message ?? error}`);
      reply.say({ text: NOTICES.unreachable, isError: true });
      reply.processed("error", "mvm_error", error);
    } finally {
      this.#activity.end(job);
      reply.idle();
    }
    return reply.result();
  }

  async #deliver(message, event, ctx, reply) {
    // The journal decides on the order: one entry at a time per conversation, as OpenClaw hands them over.
    const delivery = await this.#peers.run(message.conversation, () => this.#begin(message));
    if (delivery.state === "unknown_sender") {
      if (delivery.notice) reply.say({ text: delivery.notice });
      return reply.processed("skipped", "mvm_unknown_sender");
    }
    if (delivery.state === "answered") {
      if (!delivery.sent) await this.#hand(message.key, delivery.payload ?? {}, reply);
      return reply.processed("completed", "mvm_answered_before");
    }
    const worker = String(delivery.worker ?? "");
    if (!/^[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}$/.test(worker)) throw new Error("the router named no valid worker");
    if (isStop(message.command) && this.#stop(worker)) {
      await this.#answer(message.key, { text: NOTICES.stopped }, reply);
      return reply.processed("completed", "mvm_stopped");
    }
    const place = this.#enter(worker, ctx.abortSignal);
    const typing = keepTyping(ctx.onReplyStart);
    this.#count();
    try {
      const turn = () => this.#turn({ message, event, worker, reply, signal: place.signal });
      await (isStop(message.command) ? turn() : this.#workers.run(worker, turn));
    } finally {
      typing.stop();
      this.#leave(worker, place);
      this.#count();
    }
  }

  #begin(message) {
    return this.#router.begin({
      key: message.key,
      peer: message.peer,
      conversation: message.conversation,
      textLength: message.text.length,
    });
  }

  async #turn({ message, event, worker, reply, signal }) {
    if (signal.aborted) {
      await this.#answer(message.key, { text: "" }, reply);
      return reply.processed("completed", "mvm_stopped");
    }
    let payload;
    try {
      const result = await runTurn({
        open: (onEvent) => this.#open(worker, signal, onEvent),
        sessionKey: WORKER_SESSION,
        runId: runIdOf(message.key),
        text: message.text,
        attachments: await readImages(event),
        signal,
        deadline: Date.now() + this.#turnTimeoutMs,
      });
      payload = { text: result.text.trim() };
    } catch (error) {
      const notice = error?.notice ?? (error instanceof TurnFailed ? NOTICES.failed : NOTICES.unreachable);
      this.#log.warn(`${worker}: no answer: ${error?.message ?? error}`);
      await this.#router.failed(message.key, { reason: String(error?.message ?? error), notice });
      reply.say({ text: notice, isError: true });
      return reply.processed("error", "mvm_undelivered", error);
    }
    await this.#answer(message.key, payload, reply);
    reply.processed("completed", "mvm_answered");
  }

  async #open(worker, signal, onEvent) {
    await this.#router.wake(worker, { deadline: Date.now() + this.#wakeTimeoutMs, signal });
    const token = await readSecret(`${this.#secretsDir}/workers/${worker}`);
    return connect({ url: await this.#router.workerUrl(worker), token, timeoutMs: HELLO_TIMEOUT_MS, onEvent });
  }

  /** Journal the answer, then hand it over: a gateway that dies in between sends the recorded one. */
  async #answer(key, payload, reply) {
    await this.#router.answered(key, payload);
    await this.#hand(key, payload, reply);
  }

  async #hand(key, payload, reply) {
    if (payload.text) {
      reply.say({ text: payload.text });
      await reply.delivered();
    }
    await this.#router.sent(key);
  }

  /** End everything of this worker that runs or waits here; false when there is nothing. */
  #stop(worker) {
    const places = this.#current.get(worker);
    if (!places?.size) return false;
    for (const place of places) place.abort();
    return true;
  }

  #enter(worker, outer) {
    const place = new AbortController();
    if (outer?.aborted) place.abort();
    outer?.addEventListener("abort", () => place.abort(), { once: true });
    if (!this.#current.has(worker)) this.#current.set(worker, new Set());
    this.#current.get(worker).add(place);
    return place;
  }

  #leave(worker, place) {
    const places = this.#current.get(worker);
    places?.delete(place);
    if (places?.size === 0) this.#current.delete(worker);
  }

  #count() {
    let waiting = 0;
    for (const places of this.#current.values()) waiting += Math.max(0, places.size - 1);
    this.#activity.waiting = waiting;
  }
}

/** What is told to OpenClaw about one dispatch. */
class Reply {
  #ctx;
  #counts = { tool: 0, block: 0, final: 0 };
  #processed = false;

  constructor(ctx) {
    this.#ctx = ctx;
  }

  say(payload) {
    if (this.#ctx.dispatcher.sendFinalReply(payload)) this.#counts.final += 1;
  }

  /** Resolves when the channel took everything that was said; throws when it refused some of it. */
  async delivered() {
    await this.#ctx.dispatcher.waitForIdle();
    if (this.#ctx.dispatcher.getFailedCounts().final > 0) throw new Error("the channel did not take the answer");
  }

  processed(outcome, reason, error) {
    if (this.#processed) return;
    this.#processed = true;
    this.#ctx.recordProcessed?.(outcome, { reason, ...(error ? { error: String(error?.message ?? error) } : {}) });
  }

  idle() {
    this.#ctx.markIdle?.("message_completed");
  }

  result() {
    return { handled: true, queuedFinal: this.#counts.final > 0, counts: this.#counts };
  }
}

/** Show "typing" for as long as somebody works on the answer, also while the worker wakes. */
function keepTyping(start) {
  const tick = () => void Promise.resolve(start?.()).catch(() => {});
  tick();
  const timer = setInterval(tick, TYPING_MS);
  return { stop: () => clearInterval(timer) };
}
