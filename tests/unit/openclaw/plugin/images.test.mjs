import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { discardFiles, readImages } from "../../../../src/mvm/openclaw/plugin/images.js";

const directory = mkdtempSync(join(tmpdir(), "mvm-test-"));
after(() => rmSync(directory, { recursive: true }));
const store = join(directory, "media");
mkdirSync(join(store, "inbound"), { recursive: true });

function file(name) {
  const path = join(directory, name);
  writeFileSync(path, "picture");
  return path;
}

const event = (...paths) => ({ ctx: { MediaPaths: paths, MediaTypes: paths.map(() => "image/jpeg") } });

test("pictures are handed on; one that is gone keeps no message from being delivered", async () => {
  const found = await readImages(event(file("media/inbound/a.jpg"), join(store, "inbound/gone.jpg")));
  assert.deepEqual(found.map(({ fileName }) => fileName), ["a.jpg"]);
});

test("the files of a message are removed, and nothing outside of the store is", async () => {
  const inside = [file("media/inbound/b.jpg"), file("media/inbound/c.jpg")];
  const outside = [file("other.jpg"), join(store, "../other2.jpg")];
  file("other2.jpg");
  await discardFiles(event(...inside, ...outside, store, join(store, "inbound/gone.jpg")), store);
  assert.deepEqual(inside.filter(existsSync), []);
  assert.deepEqual(outside.filter(existsSync), outside);
  assert.ok(existsSync(store));
});

test("a message without files or without anything is fine", async () => {
  await discardFiles(undefined, store);
  await discardFiles({ ctx: {} }, store);
});
