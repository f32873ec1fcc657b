/**
 * `POST /mvm/outbound`: what a worker has to say without having been asked, brought by the router.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { sendDurableMessageBatch } from "openclaw/plugin-sdk/channel-outbound";

const MAX_BODY = 256 * 1024;
const REMEMBERED = 2000;

/** Handler of the route. `200` means that the channel took it; anything else is tried again by the router. */
export function outboundHandler({ token, currentConfig, log, send = sendDurableMessageBatch }) {
  const done = new Map();
  return async (request, response) => {
    const [status, body] = await answer({ request, token, currentConfig, log, send, done });
    response.statusCode = status;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(body));
    return true;
  };
}

async function answer({ request, token, currentConfig, log, send, done }) {
  if (request.method !== "POST") return [405, { error: "only POST" }];
  const given = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
  if (!same(given, await token())) return [401, { error: "unauthorized" }];
  const message = await read(request);
  if (!message) return [400, { error: "the body is not {id, channel, to, text}" }];
  if (!done.has(message.id)) {
    done.set(message.id, deliver({ message, currentConfig, send }));
    if (done.size > REMEMBERED) done.delete(done.keys().next().value);
  }
  const result = await done.get(message.id);
  if (result.status === "sent" || result.status === "suppressed") return [200, { status: result.status }];
  done.delete(message.id);
  log.warn(`a message nobody asked for was not taken by ${message.channel}: ${result.reason}`);
  return [502, { error: "not sent", status: result.status }];
}

async function deliver({ message, currentConfig, send }) {
  try {
    const { channel, to, text } = message;
    const result = await send({ cfg: currentConfig(), channel, to, payloads: [{ text }] });
    return { status: result.status, reason: String(result.error?.message ?? result.reason ?? "") };
  } catch (error) {
    return { status: "failed", reason: String(error?.message ?? error) };
  }
}

async function read(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY) return null;
    chunks.push(chunk);
  }
  try {
    const { id, channel, to, text } = JSON.parse(Buffer.concat(chunks).toString("utf8"));
    return [id, channel, to, text].every((value) => typeof value === "string" && value !== "") ? { id, channel, to, text } : null;
  } catch {
    return null;
  }
}

/** Equal in constant time, whatever their lengths. */
export function same(left, right) {
  const digest = (value) => createHash("sha256").update(value).digest();
  return timingSafeEqual(digest(left), digest(right));
}
