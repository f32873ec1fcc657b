import assert from "node:assert/strict";
import { test } from "node:test";
import { forgetRandomness, NUMBERS_IN_ADVANCE, UUIDS_IN_ADVANCE } from "../../../../src/mvm/openclaw/plugin/randomness.js";

test("as much is thrown away as Node draws in advance", () => {
  const source = process.binding("natives")["internal/crypto/random"];
  const uuids = Number(source.match(/const kBatchSize = (\d+);/)[1]);
  const [, factor, kibi] = source.match(/const randomCache = new FastBuffer\((\d+) \* (\d+)\);/);
  assert.equal(UUIDS_IN_ADVANCE, uuids);
  assert.equal(NUMBERS_IN_ADVANCE * 6, Number(factor) * Number(kibi));
});

test("it comes to its end", () => forgetRandomness());
