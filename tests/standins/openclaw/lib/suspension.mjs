/** Cooperative suspension: admits nothing while it is held, drains what runs, and ends by itself after its lease. */
import { randomUUID } from "node:crypto";
import { reach } from "./stages.mjs";

const LEASE_MS = 120_000;
const RETRY_MS = 100;

/** A method's refusal, as the protocol carries it. */
export class Refusal extends Error {
  constructor(code, message, { retryable, retryAfterMs, details } = {}) {
    super(message);
    this.shape = { code, message, ...(retryable ? { retryable } : {}), ...(retryAfterMs ? { retryAfterMs } : {}), ...(details ? { details } : {}) };
  }
}

export class SuspensionDesk {
  #blockers;
  #resumed;
  #held = null;
  #timer = null;

  /** `blockers()` lists what runs; `resumed()` is called when work may go on. */
  constructor({ blockers, resumed }) {
    this.#blockers = blockers;
    this.#resumed = resumed;
  }

  get held() {
    return this.#held !== null;
  }

  prepare({ requestId, drain }) {
    if (typeof requestId !== "string" || !requestId.trim()) throw new Refusal("INVALID_REQUEST", "invalid gateway.suspend.prepare params");
    if (this.#held && this.#held.requestId !== requestId) {
      throw new Refusal("UNAVAILABLE", "another gateway suspension is already prepared", { retryable: true, retryAfterMs: this.#held.expiresAtMs - Date.now() });
    }
    const blockers = this.#blockers();
    if (!this.#held && blockers.length && drain !== true) {
      return { status: "busy", reason: "active-work", retryAfterMs: RETRY_MS, activeCount: blockers.length, blockers };
    }
    this.#held ??= { requestId, suspensionId: randomUUID() };
    this.#held.expiresAtMs = Date.now() + LEASE_MS;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#release(), LEASE_MS);
    this.#timer.unref();
    const { suspensionId, expiresAtMs } = this.#held;
    if (blockers.length) return { status: "draining", suspensionId, expiresAtMs, retryAfterMs: RETRY_MS, activeCount: blockers.length, blockers };
    reach("suspended");
    return { status: "ready", suspensionId, expiresAtMs, activeCount: 0, blockers: [] };
  }

  status({ suspensionId }) {
    if (!this.#held) return { status: "running" };
    if (this.#held.suspensionId !== suspensionId) throw new Refusal("UNAVAILABLE", "a different gateway suspension is prepared", { retryable: true });
    const blockers = this.#blockers();
    const { expiresAtMs } = this.#held;
    if (blockers.length) return { status: "draining", expiresAtMs, retryAfterMs: RETRY_MS, activeCount: blockers.length, blockers };
    return { status: "ready", expiresAtMs };
  }

  resume({ suspensionId }) {
    if (!this.#held) return { ok: true, status: "running", resumed: false };
    if (this.#held.suspensionId !== suspensionId) throw new Refusal("INVALID_REQUEST", "gateway suspension id does not match");
    this.#release();
    return { ok: true, status: "running", resumed: true };
  }

  #release() {
    clearTimeout(this.#timer);
    this.#held = null;
    this.#resumed();
  }
}
