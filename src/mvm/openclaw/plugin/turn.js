/**
 * One turn on a worker: send the message, wait for the final answer, whatever dies in between.
 *
 * `chat.send` carries an idempotency key made from the upstream message id. After a lost connection the same key is sent
 * again: OpenClaw then either starts the turn (it never saw it), says that it is under way, or that it is done; in the
 * last two cases the answer is read from the transcript, where it follows our own message.
 */
import { ConnectionLost } from "./connection.js";
import { backoff, pause } from "./order.js";
import { cut, textOf } from "./message.js";
import { findAnswer } from "./transcript.js";

const HISTORY_MESSAGES = 60;
const HISTORY_CHARS = 200_000;
const SILENCE_MS = 3_000;
const RECOVERY_MS = 60_000;
const RESPITE = 10;

const MAX_REASON = 300;

/** The worker took the message and says that the turn failed: asking again would not help. */
export class TurnFailed extends Error {
  constructor(message) {
    super(cut(message, MAX_REASON)); // the worker's own words, of any length
    this.name = "TurnFailed";
  }
}

/**
 * Run one turn; returns `{text, aborted, recovered}` and throws `TurnFailed` (the turn's own error) or the last
 * connection error when the worker took nothing for `reachMs`, or when `deadline` (epoch milliseconds) passes.
 *
 * `open(onEvent)` wakes the worker when it sleeps and gives a connection; `signal` aborts the turn on the worker. `begun`
 * says that the worker may have the message already.
 */
export async function runTurn({ open, begun = false, sessionKey, runId, text, attachments, signal, deadline, reachMs = 300_000, pollMs = 500 }) {
  let last = new ConnectionLost("the worker did not answer in time");
  let reached = Date.now();
  for (let attempt = 0; Date.now() < Math.min(deadline, reached + reachMs); attempt += 1) {
    if (signal?.aborted) return { text: "", aborted: true };
    let taken = false;
    try {
      const onTaken = () => (taken = begun = true);
      return await oneConnection({ open, begun, onTaken, sessionKey, runId, text, attachments, signal, deadline, pollMs });
    } catch (error) {
      if (signal?.aborted) return { text: "", aborted: true };
      if (!(error instanceof ConnectionLost)) throw error;
      last = error;
      if (taken) [reached, attempt] = [Date.now(), 0];
      await pause(backoff(attempt, 250, 3000), signal);
    }
  }
  throw last;
}

async function oneConnection({ open, begun, onTaken, sessionKey, runId, text, attachments, signal, deadline, pollMs }) {
  let finish;
  const outcome = new Promise((resolve, reject) => (finish = { resolve, reject }));
  outcome.catch(() => {});
  const connection = await open((name, payload) => {
    if (name !== "chat" || payload.runId !== runId) return;
    if (payload.state === "final") finish.resolve({ text: textOf(payload.message), final: true });
    else if (payload.state === "aborted") finish.resolve({ text: textOf(payload.message), aborted: true });
    else if (payload.state === "error") finish.reject(new TurnFailed(payload.errorMessage ?? "the turn failed"));
  });
  const abort = () => void connection.request("chat.abort", { sessionKey }).catch(() => {});
  const stopped = aborted(signal).then(() => ({ text: "", aborted: true }));
  signal?.addEventListener("abort", abort, { once: true });
  const limit = timeout(deadline);
  const over = new AbortController();
  const ended = [stopped, connection.lost, limit.promise];
  const transcript = (every, patience) => fromHistory({ connection, sessionKey, runId, every, patience, over: over.signal });
  try {
    if (begun && (await readHistory(connection, sessionKey, runId)).asked) {
      // The worker has it: OpenClaw takes an interrupted turn up again by itself. Sent once more now, the message would
      // be queued behind that as another one.
      onTaken();
      const result = await Promise.race([outcome, transcript(pollMs, RECOVERY_MS), ...ended]);
      if (result.text || result.aborted) return result;
    }
    const ack = await request(connection, "chat.send", {
      sessionKey,
      message: text,
      idempotencyKey: runId,
      queueMode: "followup",
      ...(attachments?.length ? { attachments } : {}),
    });
    onTaken();
    if (ack?.status === "error") throw new TurnFailed(ack.error?.message ?? ack.summary ?? "the worker refused the message");
    if (ack?.status === "started") {
      const result = await Promise.race([outcome, transcript(5 * pollMs, RECOVERY_MS), ...ended]);
      if (result.text || result.aborted) return result;
      // An empty final event: a turn without words, or one that waits behind another of the session and will go on under
      // an id of its own. The transcript tells.
      return await Promise.race([transcript(pollMs, SILENCE_MS), ...ended]);
    }
    // Done already, or taken up again by OpenClaw after a restart: not a run that we can listen to.
    return await Promise.race([transcript(pollMs, RECOVERY_MS), ...ended]);
  } finally {
    limit.clear();
    over.abort();
    signal?.removeEventListener("abort", abort);
    if (signal?.aborted) await pause(150);
    connection.close();
  }
}

/** An RPC error of a live connection is the worker's own refusal; a refusal while it starts or stops is a lost connection. */
async function request(connection, method, params) {
  try {
    return await connection.request(method, params);
  } catch (error) {
    if (error instanceof ConnectionLost) throw error;
    const code = error?.gatewayCode ?? error?.code ?? "";
    if (code === "UNAVAILABLE" || error?.retryable === true || /not connected|closed|timeout/i.test(error?.message ?? "")) {
      throw new ConnectionLost(`the worker is not ready: ${cut(error?.message, 160)}`);
    }
    throw new TurnFailed(error?.message ?? error);
  }
}

/** Wait for the answer in the transcript; `patience` is how long a session in which nothing goes on may keep still. */
async function fromHistory({ connection, sessionKey, runId, every, patience, over }) {
  let [quiet, wait] = [0, every];
  for (;;) {
    await pause(wait, over);
    if (over.aborted) return { text: "", aborted: true };
    const asked = Date.now();
    const read = await readHistory(connection, sessionKey, runId).catch(
      // A worker that drains for its sleep refuses to be read, yet finishes the turn and tells its end. A connection that
      // is really lost is noticed by whoever waits for this.
      (error) => (error instanceof ConnectionLost ? null : Promise.reject(error)),
    );
    if (read === null) continue;
    const { text, error, busy } = read;
    if (text !== null) return { text, recovered: true };
    quiet = busy ? 0 : quiet + wait;
    // Reading is work for the worker too: a slow one shall spend its time on the turn.
    wait = Math.max(every, RESPITE * (Date.now() - asked));
    if (quiet < patience) continue;
    // A turn may end without words, but one that failed must not pass for it: the person would wait for ever.
    if (error !== null) throw new TurnFailed(error);
    return { text: "", recovered: true };
  }
}

/** What the transcript tells of our message, and whether the session is `busy`. */
async function readHistory(connection, sessionKey, runId) {
  const history = await request(connection, "chat.history", { sessionKey, limit: HISTORY_MESSAGES, maxChars: HISTORY_CHARS });
  return { ...findAnswer(history?.messages ?? [], runId), busy: Boolean(history?.inFlightRun) };
}

function aborted(signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) resolve();
    else signal?.addEventListener("abort", () => resolve(), { once: true });
  });
}

function timeout(deadline) {
  let timer;
  const promise = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new TurnFailed("the turn took too long")), Math.max(0, Math.min(deadline - Date.now(), 2 ** 31 - 1)));
  });
  return { promise, clear: () => clearTimeout(timer) };
}
