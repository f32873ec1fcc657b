import assert from "node:assert/strict";
import { test } from "node:test";
import "./sdk.mjs";

const { NotSent, Sender } = await import("../../../../src/mvm/openclaw/plugin/sending.js");
const { outboundHandler } = await import("../../../../src/mvm/openclaw/plugin/outbound.js");

const REFUSED = (code, retryAfter) =>
  Object.assign(new Error("delivery failed"), { cause: { error_code: code, parameters: retryAfter ? { retry_after: retryAfter } : {} } });
const BROKEN = () => Object.assign(new Error("delivery failed"), { cause: { name: "HttpError", error: { code: "ECONNRESET" } } });
const UNREACHED = () => Object.assign(new Error("delivery failed"), { notBegun: true, cause: { code: "ECONNREFUSED", syscall: "connect" } });
const MESSAGE = { id: "answer:1", channel: "telegram", to: "111", text: "hello" };

/**
 * OpenClaw's queue with a channel that fails as `failures` say, one after the other, and then takes everything. An id whose
 * sending has begun is refused from then on; `intents` outlives a restart.
 */
function scene({ failures = [], intents = new Map() } = {}) {
  const [asked, waits] = [[], []];
  const send = async ({ deliveryIntentId: id, payloads }) => {
    if (intents.get(id) === "sent") return { status: "suppressed", results: [] };
    if (intents.has(id)) return { status: "failed", error: new Error(`Stable delivery intent is already queued: ${id}`) };
    intents.set(id, "begun");
    asked.push(payloads[0].text);
    const failure = failures.shift();
    if (failure?.notBegun) intents.delete(id);
    if (failure) return { status: failure.partial ? "partial_failed" : "failed", error: failure };
    intents.set(id, "sent");
    return { status: "sent", results: [{}] };
  };
  const sender = new Sender({ currentConfig: () => ({}), send, wait: async (milliseconds) => void waits.push(milliseconds) });
  return { sender, asked, waits, intents };
}

test("what the channel refused for now is sent again, with growing pauses, until it is taken", async () => {
  const { sender, asked, waits } = scene({ failures: [REFUSED(502), REFUSED(500), REFUSED(503), REFUSED(502)] });
  await sender.persist(MESSAGE);
  assert.equal(asked.length, 5);
  assert.ok(waits.every((wait, at) => at === 0 || wait > waits[at - 1]), String(waits));
});

test("flood control is obeyed for as long as it asks", async () => {
  const { sender, waits } = scene({ failures: [REFUSED(429, 17)] });
  await sender.persist(MESSAGE);
  assert.deepEqual(waits, [17_000]);
});

for (const [what, failure] of Object.entries({ "a broken connection": BROKEN(), "a part that was shown": Object.assign(REFUSED(502), { partial: true }) })) {
  test(`after ${what} the message is repeated once, and then given up`, async () => {
    const { sender, asked } = scene({ failures: [failure] });
    await sender.persist(MESSAGE);
    assert.equal(asked.length, 2);
    const worse = scene({ failures: [failure, REFUSED(502), failure] });
    await assert.rejects(worse.sender.persist(MESSAGE), (error) => error instanceof NotSent && error.final && !error.refused);
    assert.equal(worse.asked.length, 3);
  });
}

test("what never reached the channel is no repetition", async () => {
  const { sender, asked, intents } = scene({ failures: [UNREACHED(), UNREACHED(), UNREACHED(), UNREACHED()] });
  await sender.persist(MESSAGE);
  assert.equal(asked.length, 5);
  assert.equal(intents.size, 1);
});

for (const [what, error] of Object.entries({
  "a chat that is not there": REFUSED(400),
  "a person who blocked the bot": REFUSED(403),
  "one who blocked the bot, in OpenClaw's words": new Error("Telegram send failed: bot is not a member of the chat, was blocked, or was kicked (chat_id=1)."),
  "a chat that is not there, in OpenClaw's words": new Error("Telegram send failed: chat not found (chat_id=1)."),
  "one who takes no messages on Discord": Object.assign(new Error("discord dm failed"), { kind: "dm-blocked" }),
  "a channel that is not there on Discord": Object.assign(new Error("Unknown Channel"), { status: 404 }),
  "what OpenClaw would not hand to the channel": Object.assign(new Error("no"), { code: "OPENCLAW_PLATFORM_MESSAGE_NOT_DISPATCHED", retryable: false }),
})) {
  test(`${what} ends it at once`, async () => {
    const { sender, asked, waits } = scene({ failures: [error] });
    await assert.rejects(sender.persist(MESSAGE), (thrown) => thrown.final && thrown.refused);
    assert.deepEqual([asked.length, waits], [1, []]);
  });
}

test("a bot whose token is wrong may get another one", async () => {
  const { sender, asked } = scene({ failures: [REFUSED(401), REFUSED(404)] });
  await sender.persist(MESSAGE);
  assert.equal(asked.length, 3);
});

test("a process that died in a send sends once more, and one that had sent sends nothing", async () => {
  const first = scene({ failures: [REFUSED(502), BROKEN()] });
  await assert.rejects(first.sender.send(MESSAGE));
  await assert.rejects(first.sender.send(MESSAGE));
  const second = scene({ intents: first.intents });
  await second.sender.persist(MESSAGE);
  assert.equal(second.asked.length, 1);
  const third = scene({ intents: first.intents });
  await third.sender.persist(MESSAGE);
  assert.deepEqual(third.asked, []);
});

test("a message that is being sent is waited for, not taken for sent", async () => {
  const { sender, asked } = scene({ failures: [REFUSED(502)] });
  const both = await Promise.allSettled([sender.send(MESSAGE), sender.send(MESSAGE)]);
  assert.deepEqual(both.map(({ status }) => status), ["rejected", "rejected"]);
  assert.equal(asked.length, 1);
});

test("an error without any form is no refusal and ends nothing", async () => {
  const sender = new Sender({ currentConfig: () => ({}), send: () => Promise.reject("broken"), wait: async () => {} });
  await assert.rejects(sender.send(MESSAGE), (error) => error instanceof NotSent && !error.final && !error.refused);
});

async function posted(sender, message) {
  const request = Object.assign((async function* () { yield Buffer.from(JSON.stringify(message)); })(), {
    method: "POST",
    headers: { authorization: "Bearer token" },
  });
  const response = { setHeader() {}, end() {} };
  await outboundHandler({ token: async () => "token", sender, log: { warn() {} } })(request, response);
  return response.statusCode;
}

test("the router hears which of its messages to bring again, and which never", async () => {
  const { sender } = scene({ failures: [REFUSED(502), BROKEN()] });
  assert.deepEqual([await posted(sender, MESSAGE), await posted(sender, MESSAGE), await posted(sender, MESSAGE)], [502, 502, 200]);
  assert.equal(await posted(scene({ failures: [REFUSED(403)] }).sender, MESSAGE), 422);
  const lost = scene({ failures: [BROKEN(), BROKEN()] });
  assert.deepEqual([await posted(lost.sender, MESSAGE), await posted(lost.sender, MESSAGE), await posted(lost.sender, MESSAGE)], [502, 502, 422]);
  assert.equal(lost.asked.length, 2);
});
