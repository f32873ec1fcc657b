import assert from "node:assert/strict";
import { test } from "node:test";
import { Activity, instant } from "../../../../src/mvm/openclaw/plugin/activity.js";
import { Alarms, isHousekeeping, nextAlarm } from "../../../../src/mvm/openclaw/plugin/alarms.js";

const log = { warn: () => {} };

test("what is under way is counted once, however often it is told", () => {
  const activity = new Activity(() => 1_000);
  activity.begin("turn 1", "turn");
  activity.begin("turn 1", "turn");
  activity.begin("turn 2", "turn");
  assert.equal(activity.snapshot().in_flight, 2);
  activity.end("turn 1");
  activity.end("turn 1");
  assert.equal(activity.snapshot().in_flight, 1);
});

test("busy until now is told when something ends, not when somebody looks", () => {
  let now = 0;
  const activity = new Activity(() => now);
  assert.equal(activity.snapshot().last_busy_at, null);
  now = 5_000;
  activity.begin("turn", "turn");
  now = 9_000;
  activity.end("turn");
  now = 20_000;
  assert.equal(activity.snapshot().last_busy_at, "1970-01-01T00:00:09Z");
});

test("whoever subscribed hears of changes, and of changes only", () => {
  const activity = new Activity();
  let told = 0;
  const stop = activity.subscribe(() => (told += 1));
  activity.ready = true;
  activity.ready = true;
  activity.nextAlarmAt = 5;
  activity.waiting = 0;
  assert.equal(told, 2);
  stop();
  activity.ready = false;
  assert.equal(told, 2);
});

test("times are RFC 3339 in UTC to the second", () => {
  assert.equal(instant(1_795_375_124_987), "2026-11-22T19:18:44Z");
  assert.equal(instant(null), null);
});

test("the next alarm is the earliest of the person's own enabled jobs", () => {
  const job = (nextRunAtMs, more = {}) => ({ enabled: true, payload: { kind: "agentTurn" }, state: { nextRunAtMs }, ...more });
  const jobs = [
    job(500),
    job(300),
    job(100, { enabled: false }),
    job(50, { payload: { kind: "heartbeat" } }),
    job(60, { declarationKey: "skill-collection-review:main" }),
    job(undefined),
  ];
  assert.equal(nextAlarm(jobs), 300);
  assert.equal(nextAlarm([]), null);
});

test("a job that a person named is no housekeeping", () => {
  assert.equal(isHousekeeping({ declarationKey: "my-morning", payload: { kind: "agentTurn" } }), false);
});

test("alarms follow the scheduler, and a scheduler that is off has none", async () => {
  const activity = new Activity();
  const alarms = new Alarms({ activity, log });
  await alarms.adopt(() => ({ list: async () => [{ enabled: true, state: { nextRunAtMs: 7_000 } }] }));
  assert.equal(activity.snapshot().next_alarm_at, "1970-01-01T00:00:07Z");
  await alarms.adopt(undefined);
  assert.equal(activity.snapshot().next_alarm_at, null);
});

test("a scheduler that cannot be read leaves the last alarm standing", async () => {
  const activity = new Activity();
  const alarms = new Alarms({ activity, log });
  let broken = false;
  await alarms.adopt(() => ({
    list: async () => {
      if (broken) throw new Error("closed");
      return [{ enabled: true, state: { nextRunAtMs: 7_000 } }];
    },
  }));
  broken = true;
  await alarms.reread();
  assert.equal(activity.snapshot().next_alarm_at, "1970-01-01T00:00:07Z");
});
