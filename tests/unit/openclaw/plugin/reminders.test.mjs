import assert from "node:assert/strict";
import { test } from "node:test";
import { settleDelivery } from "../../../../src/mvm/openclaw/plugin/reminders.js";

const schedule = { kind: "at", at: "2026-11-22T19:42:33Z" };
const turn = { kind: "agentTurn", message: "stretch" };
const person = { mode: "announce", channel: "mvm", to: "person" };

test("a reminder without a word about delivery goes to the person", () => {
  const settled = settleDelivery({ action: "add", job: { schedule, payload: turn } });
  assert.deepEqual(settled, { action: "add", job: { schedule, payload: turn, delivery: person } });
});

test("a delivery to some other chat becomes one to the person", () => {
  const job = { schedule, payload: turn, delivery: { mode: "announce", channel: "telegram", to: "5001", threadId: 3, bestEffort: true } };
  assert.deepEqual(settleDelivery({ action: "add", job }).job.delivery, { ...person, bestEffort: true });
});

for (const mode of ["none", "webhook"]) {
  test(`a job that wants delivery ${mode} keeps it`, () => {
    assert.equal(settleDelivery({ action: "add", job: { schedule, payload: turn, delivery: { mode } } }), null);
  });
}

test("an event for the heartbeat, which is off, becomes a turn that tells the person", () => {
  const { job } = settleDelivery({ action: "add", job: { schedule, sessionTarget: "main", payload: { kind: "systemEvent", text: "call mum" } } });
  assert.equal(job.payload.kind, "agentTurn");
  assert.match(job.payload.message, /call mum/);
  assert.equal(job.sessionTarget, "current");
  assert.deepEqual(job.delivery, person);
});

test("a change of the schedule alone stays as it is", () => {
  assert.equal(settleDelivery({ action: "update", jobId: "1", patch: { schedule } }), null);
});

test("a change of the delivery is settled like a new one", () => {
  const { patch } = settleDelivery({ action: "update", jobId: "1", patch: { delivery: { mode: "announce", channel: "last" } } });
  assert.deepEqual(patch.delivery, person);
});

test("settled stays settled, and the request itself is not touched", () => {
  const params = Object.freeze({ action: "add", job: Object.freeze({ schedule, payload: turn }) });
  assert.equal(settleDelivery(settleDelivery(params)), null);
});

for (const params of [undefined, {}, { action: "list" }, { action: "add" }, { action: "add", job: "no job" }, { action: "remove", jobId: "1" }]) {
  test(`${JSON.stringify(params)} is none of its business`, () => assert.equal(settleDelivery(params), null));
}
