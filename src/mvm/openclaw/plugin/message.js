/**
 * What an inbound message is, read from OpenClaw's dispatch event. Pure functions: no I/O, no clock.
 */
import { createHash } from "node:crypto";

/** Longest text of one message that is handed on; Telegram itself allows 4096 characters, Discord 4000. */
export const MAX_TEXT = 64 * 1024;
const MAX_KEY = 240;
const HASH_LENGTH = 64;
/** By it a worker's transcript tells the gateway's messages from those that OpenClaw writes itself. */
export const RUN_PREFIX = "mvm-";

const first = (...values) => {
  for (const value of values) if (typeof value === "string" && value.trim() !== "") return value;
  return "";
};
const id = (value) => (typeof value === "number" || typeof value === "bigint" ? String(value) : typeof value === "string" ? value.trim() : "");

/** The beginning of a text, at most so many characters; never half of one (an emoji is two), which nothing can write down. */
export function cut(text, length) {
  return String(text).slice(0, length).toWellFormed();
}

/** `telegram:5001` and `5001` both name sender 5001 of the channel telegram. */
export function stripChannel(channel, value) {
  const text = id(value);
  return text.startsWith(`${channel}:`) ? text.slice(channel.length + 1) : text;
}

/**
 * Describe a `reply_dispatch` event; throws when it names no sender or message, so that nothing is delivered unjournalled.
 *
 * `key` is the upstream identity of the message: the same for every re-dispatch of it, different for any other message.
 * `peer` is who wrote (`telegram:5001`), `conversation` where (`telegram:default:5001`).
 */
export function describe(event) {
  const ctx = event?.ctx ?? {};
  const channel = first(event?.originatingChannel, ctx.OriginatingChannel, ctx.Provider, ctx.Surface).toLowerCase();
  const account = first(ctx.AccountId, event?.originatingAccountId) || "default";
  const sender = stripChannel(channel, ctx.SenderId);
  // A bare number is a channel at Discord, not somebody to write to.
  const to = first(event?.originatingTo, ctx.OriginatingTo, ctx.From, ctx.To) || (channel === "discord" ? `user:${sender}` : sender);
  const chat = stripChannel(channel, to);
  const message = id(ctx.MessageSidFull) || id(ctx.MessageSid);
  const text = cut(first(ctx.BodyForAgent, ctx.CommandBody, ctx.RawBody, ctx.Body), MAX_TEXT);
  if (!channel || !sender || !message) throw new Error("the message names no channel, sender or message id");
  return {
    channel,
    account,
    sender,
    to,
    message,
    text,
    direct: isDirect(event?.originatingChatType, ctx.ChatType),
    peer: `${channel}:${sender}`,
    conversation: `${channel}:${account}:${chat}`,
    key: bounded([channel, account, chat, message].map((part) => encodeURIComponent(part)).join(":")),
  };
}

/** Whether everything that is said of a chat says that it is a direct one; nothing said is no. */
function isDirect(...kinds) {
  const said = kinds.filter((kind) => kind !== undefined && kind !== null);
  return said.length > 0 && said.every((kind) => kind === "direct");
}

/** A key of bounded length; two that differ anywhere still differ. */
function bounded(key) {
  if (key.length <= MAX_KEY) return key;
  return `${key.slice(0, MAX_KEY - HASH_LENGTH - 1)}:${createHash("sha256").update(key).digest("hex")}`;
}

/** The id under which the worker's OpenClaw knows this turn; it may hold no more than plain characters. */
export function runIdOf(key) {
  return `${RUN_PREFIX}${key.replace(/[^A-Za-z0-9._:%-]/g, "-")}`;
}

/** Text of a chat message as the Gateway protocol carries it: a string or a list of content parts. */
export function textOf(message) {
  const content = message?.content;
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return typeof message?.text === "string" ? message.text : "";
  return content
    .filter((part) => part?.type === "text" && typeof part.text === "string")
    .map((part) => part.text)
    .join("\n");
}

/** Local files that came with the message: `[{path, contentType}]`. */
export function mediaOf(ctx) {
  if (Array.isArray(ctx?.media)) {
    return ctx.media.filter((item) => item?.path).map((item) => ({ path: item.path, contentType: item.contentType ?? "" }));
  }
  const paths = ctx?.MediaPaths ?? (ctx?.MediaPath ? [ctx.MediaPath] : []);
  const types = ctx?.MediaTypes ?? (ctx?.MediaType ? [ctx.MediaType] : []);
  return paths.map((path, index) => ({ path, contentType: types[index] ?? "" })).filter((item) => item.path);
}
