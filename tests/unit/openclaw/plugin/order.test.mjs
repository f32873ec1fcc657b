import assert from "node:assert/strict";
import { test } from "node:test";
import { backoff, KeyedQueue, pause } from "../../../../src/mvm/openclaw/plugin/order.js";

const gate = () => {
  let open;
  const promise = new Promise((resolve) => (open = resolve));
  return { promise, open };
};

test("work of one key runs in the order asked for, one at a time", async () => {
  const queue = new KeyedQueue();
  const first = gate();
  const seen = [];
  const one = queue.run("a", async () => {
    seen.push("one begins");
    await first.promise;
    seen.push("one ends");
  });
  const two = queue.run("a", async () => seen.push("two"));
  await Promise.resolve();
  first.open();
  await Promise.all([one, two]);
  assert.deepEqual(seen, ["one begins", "one ends", "two"]);
});

test("another key does not wait", async () => {
  const queue = new KeyedQueue();
  const never = gate();
  const held = queue.run("a", () => never.promise);
  assert.equal(await queue.run("b", async () => "done"), "done");
  never.open();
  await held;
});

test("an error is the caller's and holds nobody up", async () => {
  const queue = new KeyedQueue();
  await assert.rejects(queue.run("a", async () => Promise.reject(new Error("mine"))), /mine/);
  assert.equal(await queue.run("a", async () => "next"), "next");
});

test("what waits is counted, what runs is not", async () => {
  const queue = new KeyedQueue();
  const held = gate();
  const all = [queue.run("a", () => held.promise), queue.run("a", async () => {}), queue.run("b", () => held.promise)];
  assert.equal(queue.waiting, 1);
  held.open();
  await Promise.all(all);
  await pause(0);
  assert.equal(queue.waiting, 0);
});

test("waits between tries grow up to their limit", () => {
  const waits = [0, 1, 2, 3, 50].map((attempt) => backoff(attempt, 100, 1000));
  assert.deepEqual(waits, [100, 200, 400, 800, 1000]);
});

test("a pause ends with its signal", async () => {
  const controller = new AbortController();
  const waiting = pause(60_000, controller.signal);
  controller.abort();
  await waiting;
  await pause(60_000, controller.signal);
});
