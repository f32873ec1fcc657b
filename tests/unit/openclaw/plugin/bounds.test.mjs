import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { test } from "node:test";
import { Activity } from "../../../../src/mvm/openclaw/plugin/activity.js";
import { describe } from "../../../../src/mvm/openclaw/plugin/message.js";
import { outboundHandler } from "../../../../src/mvm/openclaw/plugin/outbound.js";

test("an alarm that no calendar has is none, and breaks nothing", () => {
  for (const never of [8.64e15 + 1, 1e300, -1e300, -1, Date.parse("9999-12-31T23:59:59Z") + 1000, Number.NaN, undefined]) {
    const activity = new Activity();
    activity.nextAlarmAt = never;
    assert.equal(activity.snapshot().next_alarm_at, null);
  }
  const activity = new Activity();
  activity.nextAlarmAt = Date.parse("9999-12-31T23:59:59Z");
  assert.equal(activity.snapshot().next_alarm_at, "9999-12-31T23:59:59Z");
});

test("long keys that differ at their end only are different keys", () => {
  const key = (MessageSid) => describe({ ctx: { Provider: "telegram", SenderId: "1", AccountId: "a".repeat(300), MessageSid } }).key;
  assert.notEqual(key("41"), key("42"));
  assert.equal(key("42"), key("42"));
  assert.equal(key("42").length, 240);
});

test("the longest text that the router takes over is taken from it, whatever it is made of", async () => {
  const text = "\u0001".repeat(128 * 1024);
  const request = Readable.from([Buffer.from(JSON.stringify({ id: "1", channel: "telegram", to: "111", text }))]);
  Object.assign(request, { method: "POST", headers: { authorization: "Bearer t" } });
  const sent = [];
  const response = { setHeader: () => {}, end: () => {} };
  const sender = { send: async (message) => void sent.push(message) };
  await outboundHandler({ token: async () => "t", sender, log: { warn: () => {} } })(request, response);
  assert.equal(response.statusCode, 200);
  assert.equal(sent[0].text, text);
});
