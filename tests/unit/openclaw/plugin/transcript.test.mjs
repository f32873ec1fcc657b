import assert from "node:assert/strict";
import { test } from "node:test";

import { findAnswer } from "../../../../src/mvm/openclaw/plugin/transcript.js";

const asked = (run, content = "hello") => ({ role: "user", idempotencyKey: `${run}:user`, content });
const said = (text, stopReason = "stop") => ({ role: "assistant", stopReason, content: [{ type: "text", text }] });
const failed = (errorMessage) => ({ role: "assistant", stopReason: "error", errorMessage, content: [] });

test("a message that the worker never saw is not asked", () => {
  assert.deepEqual(findAnswer([asked("mvm-other")], "mvm-a"), { asked: false, text: null, error: null });
});

test("the answer is the last finished text before the next message of the gateway", () => {
  const messages = [asked("mvm-a"), said("let me look", "toolUse"), said("first"), said("last"), asked("mvm-b"), said("other")];
  assert.equal(findAnswer(messages, "mvm-a").text, "last");
  assert.equal(findAnswer(messages, "mvm-b").text, "other");
});

test("a turn that OpenClaw took up again after a crash is answered after OpenClaw's own message", () => {
  const messages = [asked("mvm-a"), asked("6afeb5bc", "[System] Your previous turn was interrupted"), said("recovered")];
  assert.equal(findAnswer([...messages, failed("keyed user is outside the current turn")], "mvm-a").text, "recovered");
});

test("what a reminder says later is not the answer", () => {
  const messages = [asked("mvm-a"), said("answer"), asked("cron-run", "time to stretch"), said("stretch!")];
  assert.equal(findAnswer(messages, "mvm-a").text, "answer");
});

test("a turn that failed says so", () => {
  assert.deepEqual(findAnswer([asked("mvm-a"), failed("overloaded")], "mvm-a"), {
    asked: true,
    text: null,
    error: "overloaded",
  });
});
