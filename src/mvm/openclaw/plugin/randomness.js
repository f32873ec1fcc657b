/**
 * Random numbers that Node draws in advance. A copy of this process's memory has the same ones, and would hand them out
 * as its own: they are drawn and thrown away, until Node has to ask OpenSSL for new ones.
 *
 * OpenSSL itself asks the kernel anew when the clock has moved by an hour or more, which it has in a copy (ADR 8).
 */
import { randomBytes, randomInt, randomUUID } from "node:crypto";

/** Node keeps the bytes for this many ids (lib/internal/crypto/random.js). */
export const UUIDS_IN_ADVANCE = 128;
/** It keeps 6 KiB for whole numbers, of which each takes six bytes. */
export const NUMBERS_IN_ADVANCE = 1024;
/** Threads that may have a generator of their own: those of libuv's pool, each hit by one of so many. */
const ASKED_AT_ONCE = 32;

/** Throw them away. */
export async function forgetRandomness() {
  randomBytes(16);
  await Promise.all(Array.from({ length: ASKED_AT_ONCE }, () => new Promise((resolve) => randomBytes(16, resolve))));
  for (let i = 0; i < UUIDS_IN_ADVANCE; i += 1) randomUUID();
  for (let i = 0; i < NUMBERS_IN_ADVANCE; i += 1) randomInt(2);
}
