import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { Activity } from "../../../../src/mvm/openclaw/plugin/activity.js";
import { ControlSocket, drainSeconds } from "../../../../src/mvm/openclaw/plugin/control.js";

const directory = mkdtempSync(join(tmpdir(), "mvm-test-"));
const path = join(directory, "control.sock");
const activity = new Activity();
const socket = new ControlSocket({
  path,
  activity,
  status: () => ({ ok: true, ...activity.snapshot() }),
  log: { warn() {} },
  commands: {
    CHECKPOINT: async (argument) => ({ ok: true, seconds: drainSeconds(argument) }),
    BREAK: async () => Promise.reject(new Error("broken")),
  },
});
before(() => socket.listen());
after(async () => {
  await socket.close();
  rmSync(directory, { recursive: true });
});

function talk(...requests) {
  const client = connect(path);
  client.on("error", () => {});
  const lines = createInterface({ input: client })[Symbol.asyncIterator]();
  for (const request of requests) client.write(`${request}\n`);
  return { client, next: async () => JSON.parse((await lines.next()).value) };
}

test("the socket is its owner's alone", () => assert.equal(statSync(path).mode & 0o777, 0o600));

test("requests on one connection are answered in order", async () => {
  const { client, next } = talk("STATUS", "CHECKPOINT 7", "CHECKPOINT");
  assert.equal((await next()).in_flight, 0);
  assert.deepEqual(await next(), { ok: true, seconds: 7 });
  assert.deepEqual(await next(), { ok: true, seconds: 30 });
  client.destroy();
});

for (const request of ["NONSENSE", "constructor", "CHECKPOINT soon", "CHECKPOINT -1", "BREAK"]) {
  test(`${request} is refused in one line, and the connection goes on`, async () => {
    const { client, next } = talk(request, "STATUS");
    const answer = await next();
    assert.equal(answer.ok, false);
    assert.equal(typeof answer.detail, "string");
    assert.equal((await next()).ok, true);
    client.destroy();
  });
}

test("a line without end is cut off", async () => {
  const { client, next } = talk("x".repeat(3000));
  assert.equal((await next()).ok, false);
  await new Promise((resolve) => client.once("close", resolve));
});

test("whoever subscribes is told the status now and at each change", async () => {
  const { client, next } = talk("SUBSCRIBE");
  assert.equal((await next()).in_flight, 0);
  activity.begin("turn", "turn");
  assert.equal((await next()).in_flight, 1);
  activity.end("turn");
  assert.equal((await next()).in_flight, 0);
  client.destroy();
});

test("a drain is bounded", () => assert.equal(drainSeconds("100000"), 300));
