/**
 * Loaded before OpenClaw (`node --require`): lets its first start take as long as a slow machine needs for it.
 *
 * OpenClaw migrates its state under a lease that a thread of its own renews. A thread that has not come up within five
 * seconds is given up, the migration and the whole start with it, and the next attempt fares no better: seen in every
 * start of an emulated machine on two busy cores. It is lost time wherever many guests start at once. Nothing but that
 * one timer is touched: while it runs the lease is renewed, and a thread that comes up ends it at once.
 */
"use strict";

const GIVING_UP = '() => settleStartup("timeout")';
const PATIENCE_MS = 120_000;

const plain = globalThis.setTimeout;

function setTimeoutPatiently(callback, delay, ...rest) {
  const patient = delay > 0 && typeof callback === "function" && String(callback) === GIVING_UP;
  return plain(callback, patient ? Math.max(delay, PATIENCE_MS) : delay, ...rest);
}

Object.defineProperties(setTimeoutPatiently, Object.getOwnPropertyDescriptors(plain));
globalThis.setTimeout = setTimeoutPatiently;
