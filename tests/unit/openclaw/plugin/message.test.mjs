import assert from "node:assert/strict";
import { test } from "node:test";
import { describe, MAX_TEXT, mediaOf, runIdOf, stripChannel, textOf } from "../../../../src/mvm/openclaw/plugin/message.js";

const context = {
  Provider: "telegram",
  OriginatingChannel: "telegram",
  OriginatingTo: "telegram:5001",
  AccountId: "default",
  SenderId: "5001",
  MessageSid: "42",
  ChatType: "direct",
  BodyForAgent: "hello",
};

test("a message is described by who wrote it, where, and under which id", () => {
  const message = describe({ ctx: context, originatingChatType: "direct" });
  assert.equal(message.peer, "telegram:5001");
  assert.equal(message.conversation, "telegram:default:5001");
  assert.equal(message.key, "telegram:default:5001:42");
  assert.equal(message.to, "telegram:5001");
  assert.equal(message.text, "hello");
  assert.equal(message.direct, true);
});

test("a text is not cut in the middle of a character, and somebody on Discord is addressed as a person", () => {
  const message = describe({ ctx: { Provider: "discord", SenderId: "333", MessageSid: "1", BodyForAgent: `${"x".repeat(MAX_TEXT - 1)}\u{1F331}` } });
  assert.ok(message.text.isWellFormed());
  assert.equal(message.to, "user:333");
  assert.equal(message.peer, "discord:333");
});

test("the key is the same for a re-dispatch and different for any other message", () => {
  const key = (changes) => describe({ ctx: { ...context, ...changes } }).key;
  assert.equal(key({ BodyForAgent: "changed", Timestamp: 7 }), key({}));
  const others = [{ MessageSid: "43" }, { OriginatingTo: "telegram:5002" }, { AccountId: "second" }, { OriginatingChannel: "discord" }];
  assert.equal(new Set([key({}), ...others.map(key)]).size, others.length + 1);
});

test("parts of a key cannot run into each other", () => {
  const key = (account, id) => describe({ ctx: { ...context, AccountId: account, MessageSid: id } }).key;
  assert.notEqual(key("a:5001", "1"), key("a", "5001:1"));
});

test("a group is told from a direct chat, wherever that is said", () => {
  assert.equal(describe({ ctx: { ...context, ChatType: "group" } }).direct, false);
  assert.equal(describe({ ctx: context, originatingChatType: "channel" }).direct, false);
  assert.equal(describe({ ctx: { ...context, ChatType: "group" }, originatingChatType: "direct" }).direct, false);
  assert.equal(describe({ ctx: { ...context, ChatType: undefined } }).direct, false, "not known to be direct");
});

for (const missing of ["SenderId", "MessageSid"]) {
  test(`a message without ${missing} is refused rather than delivered to somebody`, () => {
    assert.throws(() => describe({ ctx: { ...context, [missing]: "" } }));
  });
}

test("a text is bounded", () => {
  assert.equal(describe({ ctx: { ...context, BodyForAgent: "x".repeat(MAX_TEXT + 5) } }).text.length, MAX_TEXT);
});

test("numbers from a channel count as ids", () => {
  assert.equal(describe({ ctx: { ...context, SenderId: 5001, MessageSid: 42 } }).key, "telegram:default:5001:42");
});

test("a channel's own prefix is no part of an id, another's is", () => {
  assert.equal(stripChannel("telegram", "telegram:1"), "1");
  assert.equal(stripChannel("telegram", "discord:1"), "discord:1");
});

test("a turn's id holds plain characters only", () => {
  assert.match(runIdOf(describe({ ctx: { ...context, MessageSid: "a b\n/é" } }).key), /^mvm-[A-Za-z0-9._:%-]+$/);
});

test("the text of a chat message is what a person may read of it", () => {
  assert.equal(textOf({ content: "plain" }), "plain");
  assert.equal(textOf({ content: [{ type: "text", text: "a" }, { type: "thinking", text: "hidden" }, { type: "text", text: "b" }] }), "a\nb");
  assert.equal(textOf(undefined), "");
});

test("files of a message are found in both forms that OpenClaw gives", () => {
  assert.deepEqual(mediaOf({ media: [{ path: "/a.png", contentType: "image/png" }, {}] }), [{ path: "/a.png", contentType: "image/png" }]);
  assert.deepEqual(mediaOf({ MediaPaths: ["/a.png"], MediaTypes: ["image/png"] }), [{ path: "/a.png", contentType: "image/png" }]);
  assert.deepEqual(mediaOf({}), []);
});
