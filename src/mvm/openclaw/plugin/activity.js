/**
 * What is being done for anyone, right now and last: the numbers that decide over sleep. Watching them fences nothing.
 */
export class Activity {
  #now;
  #running = new Map();
  #listeners = new Set();
  #waiting = 0;
  #lastBusyAt = null;
  #nextAlarmAt = null;
  #suspended = false;
  #ready = false;

  constructor(now = Date.now) {
    this.#now = now;
  }

  /** Something identified by `id` began; `kind` says what (turn, delivery, tool). */
  begin(id, kind) {
    this.#running.set(id, kind);
    this.#touch();
  }

  /** The thing identified by `id` is over. Unknown ids are ignored: an end may be reported twice. */
  end(id) {
    if (this.#running.delete(id)) this.#touch();
  }

  /** Number of messages that wait for their turn. */
  set waiting(count) {
    if (count === this.#waiting) return;
    this.#waiting = count;
    this.#touch();
  }

  set ready(value) {
    this.#set(() => (this.#ready = value), this.#ready !== value);
  }

  set suspended(value) {
    this.#set(() => (this.#suspended = value), this.#suspended !== value);
  }

  /** The person's own next cron job or reminder, in epoch milliseconds, or null. */
  set nextAlarmAt(value) {
    this.#set(() => (this.#nextAlarmAt = value), this.#nextAlarmAt !== value);
  }

  /** True while nothing runs or waits. */
  get idle() {
    return this.#running.size === 0 && this.#waiting === 0;
  }

  snapshot() {
    return {
      in_flight: this.#running.size,
      queued: this.#waiting,
      last_busy_at: instant(this.#lastBusyAt),
      next_alarm_at: instant(this.#nextAlarmAt),
      suspended: this.#suspended,
      ready: this.#ready,
    };
  }

  /** Call `listener` after each change; returns the way to stop that. */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #touch() {
    this.#lastBusyAt = this.#now();
    this.#tell();
  }

  #set(change, changed) {
    if (!changed) return;
    change();
    this.#tell();
  }

  #tell() {
    for (const listener of this.#listeners) listener();
  }
}

const LAST_INSTANT = Date.parse("9999-12-31T23:59:59Z");

/** RFC 3339 in UTC, to the second: what the guest agent reads. What no such text can say ("in 10000 years") is none. */
export function instant(milliseconds) {
  return milliseconds === null || !(milliseconds >= 0 && milliseconds <= LAST_INSTANT) ? null : new Date(milliseconds).toISOString().replace(/\.\d+Z$/, "Z");
}
