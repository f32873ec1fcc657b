import assert from "node:assert/strict";
import { test } from "node:test";
import { Recovery } from "../../../../src/mvm/openclaw/plugin/recovery.js";

const provenance = { kind: "internal_system", sourceTool: "main_session_restart_recovery" };

test("the answer of a turn taken up again does not go out by the worker's channel as well", () => {
  const recovery = new Recovery();
  recovery.begins({ runId: "run", inputProvenance: provenance });
  assert.equal(recovery.isAnswer({ channelId: "mvm", runId: "run" }), true);
  assert.equal(recovery.isAnswer({ channelId: "webchat", runId: "run" }), false);
});

test("any other turn's message does", () => {
  const recovery = new Recovery();
  recovery.begins({ runId: "other", inputProvenance: { kind: "internal_system", sourceTool: "subagent" } });
  recovery.begins({ runId: "plain" });
  recovery.begins({ inputProvenance: provenance });
  for (const runId of ["other", "plain", "never seen", undefined]) assert.equal(recovery.isAnswer({ channelId: "mvm", runId }), false);
});

test("OpenClaw's words about a restart are held back, a reminder is not", () => {
  const recovery = new Recovery();
  const notice = { content: "I'm continuing your interrupted request now (the gateway has just restarted)." };
  assert.equal(recovery.isNotice(notice, { channelId: "mvm" }), true);
  assert.equal(recovery.isNotice({ content: "Reminder: stretch" }, { channelId: "mvm" }), false);
  assert.equal(recovery.isNotice({}, { channelId: "mvm" }), false);
});

test("only so many runs are remembered", () => {
  const recovery = new Recovery();
  for (let number = 0; number < 60; number += 1) recovery.begins({ runId: `run ${number}`, inputProvenance: provenance });
  assert.equal(recovery.isAnswer({ channelId: "mvm", runId: "run 0" }), false);
  assert.equal(recovery.isAnswer({ channelId: "mvm", runId: "run 59" }), true);
});
