import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { sdk } from "./sdk.mjs";

sdk.PlatformMessageNotDispatchedError = class extends Error {
  constructor(message, { retryable }) {
    super(message);
    this.retryable = retryable;
  }
};
const { outboxChannel, pieces } = await import("../../../../src/mvm/openclaw/plugin/channel.js");

const directory = mkdtempSync(join(tmpdir(), "mvm-test-"));
writeFileSync(join(directory, "token"), "token");
after(() => rmSync(directory, { recursive: true }));

/** A channel whose outbox answers as `answers` say (a status, or an error), one after the other, and then takes everything. */
function scene(answers = []) {
  const [asked, taken] = [[], new Map()];
  let clock = 0;
  const fetch = async (url, { body }) => {
    const { id, text } = JSON.parse(body);
    asked.push(id);
    const answer = answers.shift() ?? 202;
    if (answer instanceof Error) throw answer;
    if (answer === 202) taken.set(id, text);
    return { status: answer };
  };
  const wait = async (milliseconds) => void (clock += milliseconds);
  const channel = outboxChannel({ outboxUrl: "http://127.0.0.1:1", outboxTokenFile: join(directory, "token"), fetch, wait, now: () => clock });
  return { send: channel.outbound.sendText, asked, taken };
}

test("an outbox that cannot take a reminder now is asked again under the same id", async () => {
  const { send, asked, taken } = scene([503, 429, 500, new Error("fetch failed"), new DOMException("timed out", "TimeoutError")]);
  const { messageId } = await send({ text: "stretch" });
  assert.deepEqual(asked, Array(6).fill(messageId));
  assert.deepEqual([...taken.values()], ["stretch"]);
});

test("OpenClaw hears that a reminder was not sent, and keeps it, when the outbox stays out", async () => {
  const { send } = scene(Array(1000).fill(503));
  await assert.rejects(send({ text: "stretch" }), (error) => error instanceof sdk.PlatformMessageNotDispatchedError && error.retryable);
});

test("what the outbox will never take is not tried again", async () => {
  const { send, asked } = scene([422]);
  await assert.rejects(send({ text: "stretch" }), (error) => error instanceof sdk.PlatformMessageNotDispatchedError && !error.retryable);
  assert.equal(asked.length, 1);
});

test("a text that is too long for one message comes in several, whole", async () => {
  for (const text of ["\u{1F331}".repeat(40_000), `x${"\u{1F331}".repeat(40_000)}`, "a line of text\n".repeat(10_000)]) {
    const { send, taken } = scene();
    await send({ text, deliveryQueueId: "q" });
    assert.equal([...taken.values()].join(""), text);
    assert.ok(taken.size > 1);
    for (const piece of taken.values()) assert.ok(piece.isWellFormed() && Buffer.byteLength(piece) <= 128 * 1024);
  }
  assert.ok(pieces("a line of text\n".repeat(10_000)).every((piece) => piece.endsWith("\n") || piece === ""));
});
