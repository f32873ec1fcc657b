import assert from "node:assert/strict";
import { test } from "node:test";
import { sdk } from "./sdk.mjs";

sdk.GatewayClient = class {};
const { warmUp } = await import("../../../../src/mvm/openclaw/plugin/warmup.js");

/** A Gateway that answers one turn with `text` and writes down what it was asked. */
function gateway(text) {
  const calls = [];
  return {
    calls,
    call: async (method, params, timeoutMs) => {
      assert.equal(timeoutMs, 5000, "a request that is made for the first time has time to load its code");
      calls.push([method, params.key ?? null]);
      if (method === "sessions.create") return { key: params.key ?? "agent:main:incognito-1" };
      return { archived: [] };
    },
    open: async (onEvent) => ({
      lost: new Promise(() => {}),
      close: () => {},
      request: async (method, params) => {
        calls.push([method, params.sessionKey]);
        if (method === "chat.history") return { messages: [] };
        setImmediate(() => onEvent("chat", { runId: params.idempotencyKey, state: text === null ? "error" : "final", errorMessage: "no model", message: { content: text } }));
        return { status: "started" };
      },
    }),
  };
}

test("the turn goes on in an incognito session, and every session is deleted", async () => {
  const own = gateway("warm");
  assert.deepEqual(await warmUp({ gateway: own, limitMs: 5000 }), { ok: true });
  assert.deepEqual(own.calls, [
    ["sessions.create", null],
    ["chat.send", "agent:main:incognito-1"],
    ["sessions.delete", "agent:main:incognito-1"],
    ["sessions.create", "agent:main:mvm-warm-up"],
    ["sessions.delete", "agent:main:mvm-warm-up"],
  ]);
});

test("a turn that fails is told, and its session deleted all the same", async () => {
  const own = gateway(null);
  await assert.rejects(warmUp({ gateway: own, limitMs: 5000 }), /no model/);
  assert.deepEqual(own.calls.at(-1), ["sessions.delete", "agent:main:incognito-1"]);
});
