/**
 * One thing at a time per key, in the order asked for; different keys do not wait for each other.
 */
export class KeyedQueue {
  #tails = new Map();
  #waiting = 0;

  /** Work that waits or runs, over all keys. */
  get size() {
    return this.#waiting;
  }

  /** Run `work` after everything asked for under `key` before; its result or error is the caller's alone. */
  run(key, work) {
    this.#waiting += 1;
    const before = this.#tails.get(key) ?? Promise.resolve();
    const mine = before.then(work);
    const tail = mine.then(
      () => {},
      () => {},
    );
    this.#tails.set(key, tail);
    void tail.then(() => {
      this.#waiting -= 1;
      if (this.#tails.get(key) === tail) this.#tails.delete(key);
    });
    return mine;
  }
}

/** Wait; ends early (without an error) when `signal` aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done, { once: true });
  });
}

/** Wait between tries: doubling from `base` up to `limit` milliseconds. */
export function backoff(attempt, base = 200, limit = 5000) {
  return Math.min(limit, base * 2 ** Math.min(attempt, 20));
}

/** Reject after `milliseconds` when `promise` has not settled; says what was waited for. */
export function within(milliseconds, what, promise) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: no answer within ${milliseconds / 1000} s`)), milliseconds);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}
