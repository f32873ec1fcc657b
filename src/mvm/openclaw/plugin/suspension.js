/**
 * Calls to this OpenClaw's own Gateway: suspend and resume, secrets, channels.
 *
 * A plugin from outside may not call Gateway methods in process, so this goes over loopback with the Gateway's token,
 * one short connection per request.
 */
import { randomUUID } from "node:crypto";
import { connect } from "./connection.js";
import { pause } from "./order.js";

const HELLO_TIMEOUT_MS = 10_000;
const READINESS_TIMEOUT_MS = 5_000;
const RENEW_MS = 40_000;
const POLL_MS = 100;

export class OwnGateway {
  #port;
  #tokens;
  #good = null;

  /** `tokens()` gives the candidates: after a rotation the running Gateway may still want the former one. */
  constructor({ port, tokens }) {
    this.#port = port;
    this.#tokens = tokens;
  }

  /** One request; without `timeoutMs` it has the time that a connection gives each of its requests. */
  async call(method, params = {}, timeoutMs = undefined) {
    return this.#use((connection) => connection.request(method, params, timeoutMs));
  }

  /** Channels that OpenClaw holds back because it started uncleanly too often; only its readiness tells them. */
  async suppressedChannels() {
    const answer = await fetch(`http://127.0.0.1:${this.#port()}/readyz`, { signal: AbortSignal.timeout(READINESS_TIMEOUT_MS) });
    const { suppressed = [] } = await answer.json();
    return suppressed.map(String);
  }

  /** A connection for longer, which the caller closes; `onEvent(name, payload)` gets its events. */
  async open(onEvent) {
    let last = new Error("no token for the own Gateway");
    for (const token of new Set([this.#good, ...(await this.#tokens())].filter(Boolean))) {
      try {
        const url = `ws://127.0.0.1:${this.#port()}`;
        const connection = await connect({ url, token, timeoutMs: HELLO_TIMEOUT_MS, onEvent });
        this.#good = token;
        return connection;
      } catch (error) {
        last = error;
      }
    }
    throw last;
  }

  async #use(work) {
    const connection = await this.open();
    try {
      return await work(connection);
    } finally {
      connection.close();
    }
  }
}

/** The suspension that precedes sleep: taken with a drain, renewed until it is given back. */
export class Suspension {
  #gateway;
  #activity;
  #log;
  #held = null;
  #timer = null;

  constructor({ gateway, activity, log }) {
    this.#gateway = gateway;
    this.#activity = activity;
    this.#log = log;
  }

  /** Hold everything; `{ok: false, detail}` when work was still going on after `drainSeconds` (then nothing is held). */
  async take(drainSeconds) {
    if (this.#held?.ready) return { ok: true };
    const held = { requestId: `mvm-${randomUUID()}`, id: null, ready: false };
    const prepare = () =>
      this.#gateway.call("gateway.suspend.prepare", { requestId: held.requestId, terminalPolicy: "terminate", drain: true });
    let state = await prepare();
    held.id = state.suspensionId ?? null;
    const deadline = Date.now() + drainSeconds * 1000;
    while (state.status === "draining" && Date.now() < deadline) {
      await pause(Math.min(POLL_MS, Math.max(1, deadline - Date.now())));
      state = { ...state, ...(await this.#gateway.call("gateway.suspend.status", { suspensionId: held.id })) };
    }
    if (state.status !== "ready") {
      if (held.id) await this.#resume(held.id).catch((error) => this.#log.warn(`resume after a refused sleep: ${error.message}`));
      return { ok: false, detail: `busy: ${blockers(state)}` };
    }
    held.ready = true;
    this.#held = held;
    this.#activity.suspended = true;
    this.#timer = setInterval(() => void this.#renew(prepare), RENEW_MS);
    this.#timer.unref?.();
    return { ok: true };
  }

  /** Let work go on; fine when nothing is held (any more). */
  async release() {
    clearInterval(this.#timer);
    const held = this.#held;
    this.#held = null;
    if (held) await this.#resume(held.id);
    this.#activity.suspended = false;
    return { ok: true };
  }

  /** Stop renewing without a word to the Gateway: it is ending. */
  forget() {
    clearInterval(this.#timer);
    this.#held = null;
  }

  async #renew(prepare) {
    try {
      const state = await prepare();
      if (this.#held && state.suspensionId) this.#held.id = state.suspensionId;
    } catch (error) {
      this.#log.warn(`the suspension could not be renewed: ${error?.message ?? error}`);
    }
  }

  async #resume(id) {
    try {
      await this.#gateway.call("gateway.suspend.resume", { suspensionId: id });
    } catch (error) {
      // A lease that ran out has resumed by itself.
      const state = await this.#gateway.call("gateway.suspend.status", { suspensionId: id }).catch(() => null);
      if (state?.status !== "running") throw error;
    }
  }
}

function blockers(state) {
  const names = (state.blockers ?? []).map((item) => item.kind ?? item.category ?? item.type ?? "work");
  return [...new Set(names)].join(", ").slice(0, 200) || state.reason || state.status || "work is going on";
}
