import assert from "node:assert/strict";
import { existsSync, mkdtempSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { sdk } from "./sdk.mjs";

let worker;
sdk.GatewayClient = class {
  constructor(options) {
    this.options = options;
  }
  start() {
    queueMicrotask(() => this.options.onHelloOk());
  }
  stop() {}
  async request(method, params) {
    return worker(method, params, (payload) => this.options.onEvent({ event: "chat", payload: { runId: params.idempotencyKey, ...payload } }));
  }
};
const { GatewayRole, NOTICES, stoppedByPerson } = await import("../../../../src/mvm/openclaw/plugin/gateway.js");
const { RouterError } = await import("../../../../src/mvm/openclaw/plugin/router.js");
const { Activity } = await import("../../../../src/mvm/openclaw/plugin/activity.js");

const secretsDir = mkdtempSync(join(tmpdir(), "mvm-test-"));
mkdirSync(join(secretsDir, "workers"));
writeFileSync(join(secretsDir, "workers/alice.alice"), "token");
after(() => rmSync(secretsDir, { recursive: true }));

const says = (text) => (method, params, emit) => {
  if (method === "chat.send") queueMicrotask(() => emit({ state: "final", message: { content: text } }));
  return { status: "started" };
};

function scene({ begin = async () => ({ state: "new", worker: "alice.alice", attempt: 1 }), wake = async () => {}, out = [], refusal = null } = {}) {
  const told = { journal: [], said: [] };
  const entry = async (...line) => {
    if (out.includes(line[0])) throw new RouterError("the router answered 503: the disk is full");
    told.journal.push(line);
  };
  const router = {
    begin,
    wake,
    workerUrl: async () => "ws://127.0.0.1:1/",
    answered: (key, payload) => entry("answered", key, payload.text),
    sent: (key) => entry("sent", key),
    failed: (key, { notice }) => entry("failed", key, notice),
  };
  const sender = {
    persist: async ({ text, id }) => {
      told.journal.push(["handed over", id]);
      told.said.push(text);
      if (refusal && id.startsWith("answer:")) throw Object.assign(new Error("not taken"), refusal);
    },
  };
  const warned = [];
  const log = { info() {}, warn: (text) => warned.push(text), error() {} };
  const activity = new Activity();
  const role = new GatewayRole({ router, sender, activity, log, secretsDir, wakeTimeoutMs: 1000, turnTimeoutMs: 5000 });
  return { role, told, activity, warned };
}

const event = (changes = {}) => ({
  sendPolicy: "allow",
  ctx: { Provider: "telegram", SenderId: "111", OriginatingTo: "telegram:111", MessageSid: "1", ChatType: "direct", BodyForAgent: "hello", ...changes },
});
const dispatched = { handled: true, queuedFinal: false, counts: { tool: 0, block: 0, final: 0 } };

test("the worker's answer is journalled before it is handed over", async () => {
  worker = says("hi");
  const { role, told } = scene();
  assert.deepEqual(await role.dispatch(event(), {}), dispatched);
  assert.deepEqual(told.said, ["hi"]);
  assert.deepEqual(told.journal.map(([what]) => what), ["answered", "handed over", "sent"]);
});

test("an answer recorded before is sent again and asks nobody", async () => {
  worker = () => assert.fail("the worker was asked");
  const { role, told } = scene({ begin: async () => ({ state: "answered", payload: { text: "recorded" } }) });
  await role.dispatch(event(), {});
  assert.deepEqual(told.said, ["recorded"]);
});

for (const out of ["answered", "sent"]) {
  test(`an answer is handed over, and nothing else is said, though the journal cannot be told: ${out}`, async () => {
    worker = says("hi");
    const { role, told } = scene({ out: [out] });
    assert.deepEqual(await role.dispatch(event(), {}), dispatched);
    assert.deepEqual(told.said, ["hi"]);
  });
}

test("why there is no answer is told to the person also when the journal is out", async () => {
  worker = (method, params, emit) => {
    queueMicrotask(() => emit({ state: "error", errorMessage: "no" }));
    return { status: "started" };
  };
  const { role, told } = scene({ out: ["failed", "sent"] });
  await role.dispatch(event(), {});
  assert.deepEqual(told.said, [NOTICES.failed]);
});

test("an answer that the channel does not take is told to the operator, and to the person unless the channel refuses for good", async () => {
  worker = says("hi");
  for (const [refusal, notices] of [[{ refused: true, final: true }, 0], [{ refused: false, final: true }, 1]]) {
    const { role, told } = scene({ refusal });
    await role.dispatch(event(), {});
    assert.deepEqual(told.journal.map(([what]) => what).filter((what) => what !== "handed over"), ["answered", "failed"]);
    assert.deepEqual(told.said, ["hi", ...Array(notices).fill(NOTICES.unreachable)]);
  }
});

test("what a stranger sends is not kept", async () => {
  process.env.OPENCLAW_STATE_DIR = secretsDir;
  mkdirSync(join(secretsDir, "media/inbound"), { recursive: true });
  const picture = join(secretsDir, "media/inbound/x.jpg");
  writeFileSync(picture, "x");
  const { role } = scene({ begin: async () => ({ state: "unknown_sender", notice: null }) });
  await role.dispatch(event({ MediaPath: picture, MediaType: "image/jpeg" }), {});
  assert.equal(existsSync(picture), false);
});

test("an answer that the channel took before is not given to it twice", async () => {
  worker = () => assert.fail("the worker was asked");
  const { role, told } = scene({ begin: async () => ({ state: "answered", payload: { text: "recorded" }, sent: true }) });
  assert.deepEqual(await role.dispatch(event(), {}), dispatched);
  assert.deepEqual(told.said, []);
});

test("a worker cannot flood the channel with one answer, nor the log with one error", async () => {
  worker = says("x".repeat(25 * 1024 * 1024));
  const { role, told } = scene();
  await role.dispatch(event(), {});
  assert.equal(told.said.length, 1);
  assert.ok(told.said[0].length < 70_000);
  assert.ok(told.said[0].endsWith(NOTICES.shortened));
  worker = (method, params, emit) => {
    queueMicrotask(() => emit({ state: "error", errorMessage: "y".repeat(25 * 1024 * 1024) }));
    return { status: "started" };
  };
  const failing = scene();
  await failing.role.dispatch(event(), {});
  assert.ok(failing.warned.join("").length < 1000);
});

test("what is cut is not cut in the middle of a character, and what was cut before is mended", async () => {
  const half = "\u{1F331}"[0];
  for (const text of [`${"x".repeat(64 * 1024 - 1)}\u{1F331}`, `water ${half}`]) {
    worker = says(text);
    const { role, told } = scene();
    await role.dispatch(event(), {});
    assert.ok(told.said[0].isWellFormed());
    assert.ok(told.journal[0][2].isWellFormed());
  }
  worker = (method, params, emit) => {
    queueMicrotask(() => emit({ state: "error", errorMessage: `${"y".repeat(299)}\u{1F331}` }));
    return { status: "started" };
  };
  const failing = scene();
  await failing.role.dispatch(event(), {});
  assert.ok(failing.warned.join("").isWellFormed());
});

test("a stranger gets the notice and wakes nobody", async () => {
  const { role, told } = scene({ begin: async () => ({ state: "unknown_sender", notice: "who are you?" }), wake: () => assert.fail("woken") });
  assert.deepEqual(await role.dispatch(event(), {}), dispatched);
  assert.deepEqual(told.said, ["who are you?"]);
});

const CLAIMED = {
  "a stranger who gets no notice": [event(), { begin: async () => ({ state: "unknown_sender", notice: null }) }],
  "a group": [event({ ChatType: "group" }), {}],
  "a message without sender": [event({ SenderId: "" }), {}],
  "an event that is none": [undefined, {}],
  "a router that names no worker": [event(), { begin: async () => ({ state: "new" }) }],
  "a router that names a path": [event(), { begin: async () => ({ state: "new", worker: "../../etc" }) }],
  "a router that is gone": [event(), { begin: async () => Promise.reject(new RouterError("gone")) }],
  "a worker that does not wake": [event(), { wake: async () => Promise.reject(new RouterError("no", { notice: "It is broken.", retry: false })) }],
};
for (const [what, [given, options]] of Object.entries(CLAIMED)) {
  test(`${what} is claimed all the same: no turn runs in the gateway`, async () => {
    worker = () => assert.fail("the worker was asked");
    const { role, activity } = scene(options);
    assert.deepEqual(await role.dispatch(given, {}), dispatched);
    assert.equal(activity.idle, true);
  });
}

test("the router's own words tell the person why the worker does not wake", async () => {
  const { role, told } = scene({ wake: async () => Promise.reject(new RouterError("quota", { notice: "It is broken.", retry: false })) });
  await role.dispatch(event(), {});
  assert.deepEqual(told.said, ["It is broken."]);
  assert.equal(told.journal[0][0], "failed");
});

test("a turn that fails on the worker is told honestly and counts as answered", async () => {
  worker = (method, params, emit) => {
    queueMicrotask(() => emit({ state: "error", errorMessage: "no credit" }));
    return { status: "started" };
  };
  const { role, told } = scene();
  await role.dispatch(event(), {});
  assert.deepEqual(told.said, [NOTICES.failed]);
});

test("an aborted dispatch returns at once, and stopping the turn is left to the worker", async () => {
  const asked = [];
  const controller = new AbortController();
  worker = (method) => {
    asked.push(method);
    if (method === "chat.send") setImmediate(() => controller.abort(new Error("Reply operation aborted by user")));
    return { status: "started" };
  };
  const { role, told } = scene();
  assert.deepEqual(await role.dispatch(event(), { abortSignal: controller.signal }), dispatched);
  while (told.journal.length < 2) await new Promise(setImmediate);
  assert.ok(asked.includes("chat.abort"));
  assert.deepEqual(told.said, [], "what was stopped is not answered");
});

test("only the person's own stop ends the turn", () => {
  const abortedFor = (reason) => {
    const controller = new AbortController();
    const signal = stoppedByPerson(controller.signal);
    controller.abort(new Error(reason));
    return signal.aborted;
  };
  assert.equal(abortedFor("Reply operation aborted by user"), true);
  assert.equal(abortedFor("Gateway is restarting"), false);
});

test("a worker that refuses to be read while it drains still tells the end of the turn", async () => {
  worker = (method, params, emit) => {
    if (method === "chat.history") throw Object.assign(new Error("suspending"), { gatewayCode: "UNAVAILABLE" });
    setTimeout(() => emit({ state: "final", message: { content: "done" } }), 60);
    return { status: "started" };
  };
  const { runTurn } = await import("../../../../src/mvm/openclaw/plugin/turn.js");
  const { connect } = await import("../../../../src/mvm/openclaw/plugin/connection.js");
  let opened = 0;
  const open = (onEvent) => {
    opened += 1;
    return connect({ url: "ws://127.0.0.1:1/", token: "token", timeoutMs: 1000, onEvent });
  };
  const result = await runTurn({ open, sessionKey: "s", runId: "mvm-1", text: "hello", deadline: Date.now() + 5000, pollMs: 2 });
  assert.equal(result.text, "done");
  assert.equal(opened, 1);
});

test("a worker that wakes but lets nobody in is given up, so that the person hears of it", async () => {
  const { runTurn } = await import("../../../../src/mvm/openclaw/plugin/turn.js");
  const { ConnectionLost } = await import("../../../../src/mvm/openclaw/plugin/connection.js");
  const open = async () => Promise.reject(new ConnectionLost("unauthorized"));
  const turn = runTurn({ open, sessionKey: "s", runId: "mvm-1", text: "hello", deadline: Date.now() + 60_000, reachMs: 20 });
  await assert.rejects(turn, /unauthorized/);
});
