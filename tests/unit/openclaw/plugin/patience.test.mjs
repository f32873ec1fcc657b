import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const patience = fileURLToPath(new URL("../../../../src/mvm/openclaw/plugin/patience.cjs", import.meta.url));

function told(program) {
  return execFileSync(process.execPath, ["--require", patience, "-e", program], { encoding: "utf8" }).trim();
}

test("OpenClaw's giving up of a slow thread is put off", () => {
  const program = `
    const settleStartup = (trigger) => { console.log("gave up"); };
    const giving = setTimeout(() => settleStartup("timeout"), 20);
    setTimeout(() => { console.log("others are on time"); clearTimeout(giving); }, 60);
  `;
  assert.equal(told(program), "others are on time");
});

test("a check that is due already is not put off", () => {
  assert.equal(told(`const settleStartup = console.log; setTimeout(() => settleStartup("timeout"), 0);`), "timeout");
});

test("timers stay what they were", () => {
  const program = `
    const { promisify } = require("node:util");
    promisify(setTimeout)(5, "value").then((value) => console.log(value, typeof setTimeout(() => {}, 1).unref));
    setTimeout((a, b) => console.log(a + b), 1, 2, 3);
  `;
  assert.deepEqual(told(program).split("\n").sort(), ["5", "value function"]);
});
