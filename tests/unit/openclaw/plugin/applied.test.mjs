import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { configApplied, difference } from "../../../../src/mvm/openclaw/plugin/applied.js";

async function withFile(content, work) {
  const directory = await mkdtemp(join(tmpdir(), "mvm-applied-"));
  try {
    const path = join(directory, "openclaw.json");
    await writeFile(path, JSON.stringify(content));
    await work(path);
  } finally {
    await rm(directory, { recursive: true });
  }
}

test("defaults besides and secrets in place of references make no difference", () => {
  const wanted = { models: { a: { apiKey: { source: "file", provider: "mvm", id: "/K" }, list: [{ id: "x" }] } } };
  assert.equal(difference({ models: { a: { apiKey: "secret", list: [{ id: "x", cost: 0 }] }, mode: "merge" } }, wanted), null);
});

test("the first place that is another is named", () => {
  assert.equal(difference({ models: { a: { url: "old" } } }, { models: { a: { url: "new" } } }), "models.a.url");
  assert.equal(difference({ plugins: { allow: ["a"] } }, { plugins: { allow: ["a", "b"] } }), "plugins.allow");
  assert.equal(difference({}, { models: {} }), "models");
});

test("it waits until OpenClaw goes by the file", () =>
  withFile({ model: "new" }, async (path) => {
    let looks = 0;
    await configApplied({ path, current: () => ({ model: (looks += 1) < 3 ? "old" : "new" }) });
    assert.equal(looks, 3);
  }));

test("what is never taken in is said with its place", () =>
  withFile({ model: "new" }, async (path) => {
    await assert.rejects(configApplied({ path, current: () => ({ model: "old" }), limitMs: 1 }), /not taken in: model is another/);
  }));
