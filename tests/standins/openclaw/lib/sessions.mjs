/** Sessions of the one agent `main`: transcripts on disk, one turn at a time, turns that survive a kill. */
import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Log, readWhole, writeWhole } from "./disk.mjs";
import { reach, violation } from "./stages.mjs";
import { Refusal } from "./suspension.mjs";

const RECOVERY_MS = 300;

export class Sessions {
  #directory;
  #turn;
  #broadcast;
  #agentEvent;
  #status;
  #log;
  #sessions = new Map();

  /** `turn({messages, signal, onText})` gives the answer's text; `broadcast(payload)` tells the connected clients. */
  constructor({ directory, turn, broadcast, agentEvent, status, log }) {
    this.#directory = join(directory, "agents/main/sessions");
    this.#turn = turn;
    this.#broadcast = broadcast;
    this.#agentEvent = agentEvent;
    this.#status = status;
    this.#log = log;
  }

  get running() {
    return [...this.#sessions.values()].filter((session) => session.run || session.queue.length).length;
  }

  /** Take up the turns that a kill interrupted, after a moment, as OpenClaw does. */
  recover() {
    if (!existsSync(this.#directory)) return;
    for (const name of readdirSync(this.#directory)) {
      if (!name.endsWith(".active.json")) continue;
      const { sessionKey, idempotencyKey } = readWhole(join(this.#directory, name));
      const session = this.#session(sessionKey);
      if (session.done.has(idempotencyKey)) {
        this.#finish(session); // its answer ends the transcript: there is nothing to resume
        continue;
      }
      const again = { id: `recovered-${randomUUID()}`, idempotencyKey, controller: new AbortController(), text: "" };
      session.run = again;
      setTimeout(() => void this.#perform(session, again, { delayed: true }), RECOVERY_MS);
    }
  }

  /** chat.send. The answer to the caller comes first, then the turn's events. */
  send({ sessionKey, message, idempotencyKey, attachments = [], queueMode, admitted, scopes, answered }) {
    const session = this.#session(sessionKey);
    const state = this.#stateOf(session, idempotencyKey);
    if (state) return { runId: idempotencyKey, status: state };
    if (!admitted()) throw new Refusal("UNAVAILABLE", "gateway is suspended", { retryable: true, retryAfterMs: 500 });
    if (/:(telegram|discord):direct:/.test(sessionKey)) violation("such a session key makes a worker think that it owns the chat", { sessionKey });
    const run = { id: idempotencyKey, idempotencyKey, controller: new AbortController(), text: "", input: { message, attachments } };
    const command = /^\/(status|new|reset|stop|help)\b/.exec(message.trim())?.[1];
    if (command === "new" && !scopes.includes("operator.admin")) throw new Refusal("FORBIDDEN", "missing scope: operator.admin");
    if (command) {
      session.done.add(idempotencyKey);
      answered.push(() => this.#command(session, run, command));
      return { runId: run.id, status: "started" };
    }
    if (session.run) {
      if (queueMode && !["followup", "steer", "collect", "interrupt"].includes(queueMode)) throw new Refusal("INVALID_REQUEST", "invalid chat.send params");
      // OpenClaw tells the sender of a queued message that it is over, at once and without words.
      session.queue.push({ ...run, id: `queued-${randomUUID()}` });
      answered.push(() => this.#tell(session, run, { state: "final" }));
      return { runId: run.id, status: "started" };
    }
    this.#accept(session, run);
    answered.push(() => void this.#perform(session, run));
    return { runId: run.id, status: "started" };
  }

  history({ sessionKey, limit = 200 }) {
    const session = this.#session(sessionKey);
    return {
      sessionKey,
      sessionId: session.id,
      messages: session.messages.slice(-limit),
      ...(session.run ? { inFlightRun: { runId: session.run.id, text: session.run.text } } : {}),
      pendingInputs: { items: [], total: session.queue.length },
    };
  }

  abort({ sessionKey, runId }) {
    const session = this.#session(sessionKey);
    const { run } = session;
    if (!run || (runId && run.id !== runId)) return { ok: true, aborted: false, runIds: [] };
    session.queue.length = 0;
    run.controller.abort(new Error("aborted"));
    return { ok: true, aborted: true, runIds: [run.id] };
  }

  /** An incognito session is kept in memory alone. */
  create({ agentId, key, incognito = false }) {
    if (agentId !== "main") throw new Refusal("INVALID_REQUEST", `unknown agent "${agentId}"`);
    if (incognito && key) throw new Refusal("INVALID_REQUEST", "an incognito session cannot have a key of its own");
    const name = key ?? `agent:main:${incognito ? "incognito" : "session"}-${randomUUID()}`;
    if (incognito) {
      const log = { read: () => [], append: () => {}, clear: () => {} };
      this.#sessions.set(name, { key: name, id: name, log, messages: [], done: new Set(), active: null, run: null, queue: [] });
    }
    const session = this.#session(name);
    return { ok: true, key: session.key, sessionId: session.id };
  }

  remove({ key }) {
    if (key === "agent:main:main" || key === "main") throw new Refusal("INVALID_REQUEST", "cannot delete the main session");
    const session = this.#session(key);
    if (session.run) throw new Refusal("UNAVAILABLE", "session is active");
    this.#sessions.delete(key);
    rmSync(join(this.#directory, `${encodeURIComponent(key)}.jsonl`), { force: true });
    return { ok: true, key, deleted: true, archived: [] };
  }

  /** Wait until nothing runs any more. */
  async drained() {
    while (this.running) await new Promise((resolve) => setTimeout(resolve, 20));
  }

  #session(sessionKey) {
    const key = sessionKey === "main" ? "agent:main:main" : sessionKey;
    if (!key.startsWith("agent:main:")) throw new Refusal("INVALID_REQUEST", `unknown agent in session key "${sessionKey}"`);
    if (!this.#sessions.has(key)) {
      const file = join(this.#directory, encodeURIComponent(key));
      const log = new Log(`${file}.jsonl`);
      const messages = log.read().filter((record) => record.role);
      const done = new Set(messages.filter((record) => record.role === "assistant").map((record) => record.answers));
      this.#sessions.set(key, { key, id: key, log, messages, done, active: `${file}.active.json`, run: null, queue: [] });
    }
    return this.#sessions.get(key);
  }

  #stateOf(session, key) {
    if (session.run?.idempotencyKey === key || session.queue.some((run) => run.idempotencyKey === key)) return "in_flight";
    if (session.done.has(key)) return "ok";
    // Taken before, ended without an answer (aborted or failed): OpenClaw does not run it again.
    return session.messages.some((message) => message.idempotencyKey === `${key}:user`) ? "ok" : null;
  }

  #accept(session, run) {
    session.run = run;
    const { message, attachments } = run.input;
    const images = attachments.map(({ mimeType, content }) => ({ type: "image", source: { type: "base64", media_type: mimeType, data: content } }));
    if (session.active) writeWhole(session.active, { sessionKey: session.key, idempotencyKey: run.idempotencyKey });
    this.#append(session, {
      role: "user",
      content: [...images, { type: "text", text: message }],
      idempotencyKey: `${run.idempotencyKey}:user`,
    });
    reach("turn-accepted");
  }

  async #perform(session, run, { delayed = false } = {}) {
    this.#agentEvent({ runId: run.id, sessionKey: session.key, stream: "lifecycle", data: { phase: "start" } });
    let phase = "end";
    try {
      reach("turn-started");
      const asked = session.messages.findIndex((message) => message.idempotencyKey === `${run.idempotencyKey}:user`);
      const text = await this.#turn({
        messages: session.messages.slice(0, asked + 1).map(({ role, content }) => ({ role, content })),
        sessionKey: session.key,
        signal: run.controller.signal,
        onText: (sofar) => {
          run.text = sofar;
          if (!delayed) this.#tell(session, run, { state: "delta", message: assistant(sofar) });
        },
      });
      reach("model-answered");
      this.#append(session, { ...assistant(text), stopReason: "stop", answers: run.idempotencyKey });
      session.done.add(run.idempotencyKey);
      reach("turn-recorded");
      this.#finish(session);
      this.#tell(session, run, { state: "final", message: assistant(text) });
    } catch (error) {
      const aborted = run.controller.signal.aborted;
      phase = aborted ? "end" : "error";
      if (!aborted) this.#log(`turn failed: ${error?.message ?? error}`);
      this.#append(session, { ...assistant(run.text), stopReason: aborted ? "aborted" : "error" });
      this.#finish(session);
      this.#tell(session, run, aborted ? { state: "aborted", message: assistant(run.text) } : { state: "error", errorMessage: String(error?.message ?? error) });
    }
    this.#agentEvent({ runId: run.id, sessionKey: session.key, stream: "lifecycle", data: { phase } });
    const next = session.queue.shift();
    if (next) {
      this.#accept(session, next);
      void this.#perform(session, next);
    }
  }

  #finish(session) {
    session.run = null;
    if (session.active) rmSync(session.active, { force: true });
  }

  #command(session, run, command) {
    if (command === "new" || command === "reset") {
      session.log.clear();
      session.messages = [];
    }
    const text = command === "status" ? this.#status(session) : command === "new" || command === "reset" ? "✅ New session started." : "Done.";
    this.#tell(session, run, { state: "final", message: assistant(text) });
  }

  #append(session, message) {
    const record = { ...message, timestamp: Date.now() };
    session.messages.push(record);
    session.log.append(record);
  }

  #tell(session, run, payload) {
    this.#broadcast({ runId: run.id, sessionKey: session.key, ...payload });
  }
}

function assistant(text) {
  return { role: "assistant", content: [{ type: "text", text }] };
}
