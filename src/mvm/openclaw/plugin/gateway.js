/**
 * Role gateway: every message that any channel takes is handed to the worker of whoever wrote it.
 *
 * The one rule that nothing here may break: no turn ever runs inside the gateway. Whatever happens, the dispatch is
 * claimed; when a message cannot be delivered the person is told so.
 */
import { connect } from "./connection.js";
import { cut, describe, runIdOf } from "./message.js";
import { discardFiles, readImages } from "./images.js";
import { KeyedQueue } from "./order.js";
import { readSecret } from "./router.js";
import { runTurn, TurnFailed } from "./turn.js";

/** All conversations of a person go on in one session of their worker, where reminders speak too. */
export const WORKER_SESSION = "agent:main:main";

/** Characters of one answer: sixteen messages of Telegram's. */
const MAX_ANSWER = 64 * 1024;
const TYPING_MS = 4000;
const HELLO_TIMEOUT_MS = 20_000;
const WORKER_KEY = /^[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}$/;

export const NOTICES = {
  unreachable: "Your assistant could not be reached just now. Please send your message again in a minute.",
  failed: "Your assistant could not answer this message: something went wrong on its side. Please try again.",
  shortened: "(The rest of this answer is left out: it is too long.)",
};

export class GatewayRole {
  #router;
  #sender;
  #activity;
  #log;
  #secretsDir;
  #wakeTimeoutMs;
  #turnTimeoutMs;
  #peers = new KeyedQueue();
  #workers = new KeyedQueue();
  #serial = 0;

  constructor({ router, sender, activity, log, secretsDir, wakeTimeoutMs, turnTimeoutMs }) {
    this.#router = router;
    this.#sender = sender;
    this.#activity = activity;
    this.#log = log;
    this.#secretsDir = secretsDir;
    this.#wakeTimeoutMs = wakeTimeoutMs;
    this.#turnTimeoutMs = turnTimeoutMs;
  }

  /**
   * Handler of the hook `reply_dispatch`: always claims the dispatch, and holds it until the message is dealt with, so
   * that the channel's durable queue brings it again should this process die.
   *
   * An aborted dispatch returns at once: OpenClaw drops whatever the person writes next for as long as it lasts. The rest
   * is done in the background, where the router's journal has it.
   */
  async dispatch(event, ctx) {
    const typing = keepTyping(ctx.onReplyStart);
    const work = this.#work(event, ctx).finally(() => typing.stop());
    const reason = await Promise.race([work, aborted(ctx.abortSignal)]);
    typing.stop();
    ctx.recordProcessed?.("completed", { reason: `mvm_${reason}` });
    ctx.markIdle?.("message_completed");
    return { handled: true, queuedFinal: false, counts: { tool: 0, block: 0, final: 0 } };
  }

  /** Deal with one message; resolves with what became of it and never rejects. */
  async #work(event, ctx) {
    const job = `delivery-${(this.#serial += 1)}`;
    this.#activity.begin(job, "delivery");
    let message;
    try {
      message = describe(event);
      // Only direct chats are served: in a group anyone could drive the owner's worker.
      if (!message.direct) return "not_direct";
      if (event.sendPolicy === "deny") return "send_denied";
      return await this.#deliver(message, event, stoppedByPerson(ctx.abortSignal));
    } catch (error) {
      this.#log.error(`a message could not be delivered: ${error?.message ?? error}`);
      // Whom the channel does not let us write to cannot be told so either.
      if (message && !(error?.refused && error.final)) await this.#say(message, "notice", NOTICES.unreachable).catch(() => {});
      return "error";
    } finally {
      await discardFiles(event);
      this.#activity.end(job);
    }
  }

  async #deliver(message, event, signal) {
    // The journal decides on the order: one entry at a time per conversation, as OpenClaw hands them over.
    const delivery = await this.#peers.run(message.conversation, () =>
      this.#router.begin({
        key: message.key,
        peer: message.peer,
        conversation: message.conversation,
        textLength: message.text.length,
      }),
    );
    if (delivery.state === "unknown_sender") {
      if (delivery.notice) await this.#say(message, "stranger", delivery.notice);
      return "unknown_sender";
    }
    if (delivery.state === "answered") {
      // What the channel took once is not given to it again.
      if (!delivery.sent) await this.#hand(message, delivery.payload ?? {});
      return "answered_before";
    }
    const worker = String(delivery.worker ?? "");
    if (!WORKER_KEY.test(worker)) throw new Error("the router named no valid worker");
    const begun = delivery.state === "open";
    const turn = this.#workers.run(worker, () => this.#turn({ message, event, worker, begun, signal }));
    this.#activity.waiting = this.#workers.waiting;
    try {
      return await turn;
    } finally {
      this.#activity.waiting = this.#workers.waiting;
    }
  }

  async #turn({ message, event, worker, begun, signal }) {
    const runId = runIdOf(message.key); // also its trace: the logs of all who deal with the message have it
    let payload;
    try {
      const result = await runTurn({
        open: (onEvent) => this.#open(worker, runId, signal, onEvent),
        begun,
        sessionKey: WORKER_SESSION,
        runId,
        text: message.text,
        attachments: await readImages(event),
        signal,
        deadline: Date.now() + this.#turnTimeoutMs,
      });
      payload = { text: result.aborted ? "" : bounded(result.text.trim()) };
    } catch (error) {
      const notice = error?.notice ?? (error instanceof TurnFailed ? NOTICES.failed : NOTICES.unreachable);
      this.#log.warn(`trace ${runId}: ${worker}: no answer: ${error?.message ?? error}`);
      await this.#noted(this.#router.failed(message.key, { reason: String(error?.message ?? error), notice }));
      await this.#hand(message, { text: notice });
      return "undelivered";
    }
    // Journal the answer, then hand it over: a gateway that dies in between sends the recorded one.
    await this.#noted(this.#router.answered(message.key, payload));
    await this.#hand(message, payload);
    return signal.aborted ? "stopped" : "answered";
  }

  async #open(worker, trace, signal, onEvent) {
    await this.#router.wake(worker, { trace, deadline: Date.now() + this.#wakeTimeoutMs, signal });
    const token = await readSecret(`${this.#secretsDir}/workers/${worker}`);
    return connect({ url: await this.#router.workerUrl(worker, trace), token, timeoutMs: HELLO_TIMEOUT_MS, onEvent });
  }

  async #hand(message, payload) {
    try {
      if (payload.text) await this.#say(message, "answer", payload.text);
    } catch (error) {
      // For the operator; the answer stays in the journal.
      await this.#noted(this.#router.failed(message.key, { reason: `the answer is given up: ${error.message}`, notice: NOTICES.unreachable }));
      throw error;
    }
    await this.#noted(this.#router.sent(message.key));
  }

  /**
   * An answer that is there is handed over also when the journal stays out (a full disk): it goes under an id of its own,
   * and a later dispatch finds the turn in the worker's transcript, so nothing is done or sent twice.
   */
  async #noted(entry) {
    await entry.catch((error) => this.#log.error(`the journal does not have what became of a message: ${error?.message ?? error}`));
  }

  #say(message, kind, text) {
    const { channel, account, to } = message;
    return this.#sender.persist({ id: `${kind}:${message.key}`, channel, account, to, text });
  }
}

/** A worker may say more than a chat can carry; the channel is everybody's. */
function bounded(text) {
  const whole = cut(text, MAX_ANSWER);
  return text.length <= MAX_ANSWER ? whole : `${whole}\n\n${NOTICES.shortened}`;
}

/** Show "typing" for as long as somebody works on the answer, also while the worker wakes. */
function keepTyping(start) {
  const tick = () => void Promise.resolve(start?.()).catch(() => {});
  tick();
  const timer = setInterval(tick, TYPING_MS);
  return { stop: () => clearInterval(timer) };
}

function aborted(signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) resolve("aborted");
    else signal?.addEventListener("abort", () => resolve("aborted"), { once: true });
  });
}

/**
 * A signal that aborts when the person said /stop (OpenClaw takes that command itself, past the queue). OpenClaw aborts a
 * dispatch for reasons of its own too, a restart above all: the turn on the worker is none of its business and goes on.
 */
export function stoppedByPerson(outer) {
  const controller = new AbortController();
  const check = () => {
    if (/\bby user\b/i.test(String(outer.reason?.message ?? outer.reason ?? ""))) controller.abort();
  };
  if (outer?.aborted) check();
  else outer?.addEventListener("abort", check, { once: true });
  return controller.signal;
}
