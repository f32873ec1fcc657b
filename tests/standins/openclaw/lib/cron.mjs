/** The scheduler: jobs on disk, run when they are due, their output announced through a channel. */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { readWhole, writeWhole } from "./disk.mjs";

const TICK_MS = 50;
const RETRY_MS = 500;
const FIELDS = ["agentId", "deleteAfterRun", "delivery", "description", "enabled", "name", "payload", "schedule", "sessionKey", "sessionTarget", "wakeMode"];

export class Cron {
  #path;
  #deliveries;
  #jobs;
  #pending;
  #run;
  #deliver;
  #changed;
  #paused;
  #log;
  #running = new Set();
  #timer = null;

  /** `run(job)` gives the text of an isolated turn; `deliver(delivery)` hands it to a channel or throws. */
  constructor({ directory, run, deliver, changed, paused, log }) {
    this.#path = join(directory, "cron/jobs.json");
    this.#deliveries = join(directory, "cron/deliveries.json");
    this.#jobs = readWhole(this.#path, [housekeeping()]);
    this.#pending = readWhole(this.#deliveries, []);
    this.#run = run;
    this.#deliver = deliver;
    this.#changed = changed;
    this.#paused = paused;
    this.#log = log;
  }

  get running() {
    return this.#running.size;
  }

  start() {
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
  }

  stop() {
    clearInterval(this.#timer);
  }

  async list({ includeDisabled = false } = {}) {
    return this.#jobs.filter((job) => includeDisabled || job.enabled !== false);
  }

  async add(given) {
    const unknown = Object.keys(given).filter((name) => !FIELDS.includes(name));
    if (unknown.length) throw new Error(`unknown field of a job: ${unknown.join(", ")}`);
    const at = Date.parse(given.schedule?.at);
    if (given.schedule?.kind !== "at" || Number.isNaN(at)) throw new Error("schedule: the stand-in knows {kind:'at', at:<ISO time>}");
    if (given.payload?.kind !== "agentTurn" || !given.payload.message) throw new Error("payload: the stand-in knows {kind:'agentTurn', message}");
    const now = Date.now();
    const job = {
      id: randomUUID(),
      enabled: true,
      deleteAfterRun: true,
      delivery: { mode: "announce" },
      ...given,
      createdAtMs: now,
      updatedAtMs: now,
      state: { nextRunAtMs: at },
    };
    this.#jobs.push(job);
    this.#save();
    await this.#changed({ action: "added", jobId: job.id });
    return job;
  }

  async remove(id) {
    const before = this.#jobs.length;
    this.#jobs = this.#jobs.filter((job) => job.id !== id);
    this.#save();
    await this.#changed({ action: "removed", jobId: id });
    return { ok: true, removed: this.#jobs.length < before };
  }

  #tick() {
    if (this.#paused()) return;
    for (const delivery of this.#pending) {
      if (this.#running.has(delivery.id) || (delivery.notBefore ?? 0) > Date.now()) continue;
      this.#running.add(delivery.id);
      void this.#send(delivery);
    }
    for (const job of this.#jobs) {
      if (job.enabled === false || job.declarationKey || this.#running.has(job.id) || job.state.nextRunAtMs > Date.now()) continue;
      this.#running.add(job.id);
      void this.#perform(job).finally(() => this.#running.delete(job.id));
    }
  }

  async #perform(job) {
    try {
      const text = await this.#run(job);
      const delivery = { id: `cron:${job.id}:${job.state.nextRunAtMs}`, delivery: job.delivery, text };
      if (text && job.delivery?.mode === "announce") {
        this.#pending.push(delivery);
        this.#running.add(delivery.id);
      }
      // The output and the end of the job are one step: a kill before it runs the job again, one after it only sends.
      writeWhole(this.#deliveries, this.#pending);
      if (job.deleteAfterRun) this.#jobs = this.#jobs.filter((other) => other.id !== job.id);
      else job.enabled = false;
      this.#save();
      // A job is over when its output is delivered; what the channel does not take now is tried again from the disk.
      if (this.#pending.includes(delivery)) await this.#send(delivery);
    } catch (error) {
      this.#log(`cron: ${job.name ?? job.id} failed: ${error?.message ?? error}`);
      job.state.nextRunAtMs = Date.now() + 30_000;
    }
    this.#save();
    await this.#changed({ action: "finished", jobId: job.id });
  }

  async #send(delivery) {
    try {
      await this.#deliver(delivery);
      this.#pending = this.#pending.filter((other) => other.id !== delivery.id);
    } catch (error) {
      this.#log(`cron: a delivery failed: ${error?.message ?? error}`);
      delivery.notBefore = Date.now() + RETRY_MS;
      // Of whatever may have been shown OpenClaw makes no second attempt.
      if (!error?.retryable) this.#pending = this.#pending.filter((other) => other.id !== delivery.id);
    }
    this.#running.delete(delivery.id);
    writeWhole(this.#deliveries, this.#pending);
  }

  #save() {
    writeWhole(this.#path, this.#jobs);
  }
}

/** OpenClaw has jobs of its own, which nobody should be woken for. */
function housekeeping() {
  const night = new Date();
  night.setUTCHours(27, 0, 0, 0);
  return {
    id: "housekeeping",
    name: "Memory Dreaming Promotion",
    declarationKey: "memory-core:dreaming",
    enabled: true,
    schedule: { kind: "cron", expr: "0 3 * * *" },
    payload: { kind: "systemEvent", text: "dreaming" },
    state: { nextRunAtMs: night.getTime() },
  };
}
