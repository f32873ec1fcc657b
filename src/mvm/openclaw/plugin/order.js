/**
 * One thing at a time per key, in the order asked for; different keys do not wait for each other.
 */
export class KeyedQueue {
  #tails = new Map();
  #asked = 0;

  /** Work that waits for its turn, over all keys. */
  get waiting() {
    return this.#asked - this.#tails.size;
  }

  /** Run `work` after everything asked for under `key` before; its result or error is the caller's alone. */
  run(key, work) {
    this.#asked += 1;
    const before = this.#tails.get(key) ?? Promise.resolve();
    const mine = before.then(work);
    const tail = mine.then(
      () => {},
      () => {},
    );
    this.#tails.set(key, tail);
    void tail.then(() => {
      this.#asked -= 1;
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
