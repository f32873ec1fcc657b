/**
 * `POST /mvm/outbound`: what a worker has to say without having been asked, brought by the router.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { cut } from "./message.js";

/** What the router may send: a text of 128 KiB takes up to six times that as JSON. */
const MAX_BODY = 1024 * 1024;

/** Handler of the route. `200`: the channel took it; `422`: it never will, or nobody can tell; else the router tries again. */
export function outboundHandler({ token, sender, log }) {
  return async (request, response) => {
    const [status, body] = await answer({ request, token, sender, log });
    response.statusCode = status;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(body));
    return true;
  };
}

async function answer({ request, token, sender, log }) {
  if (request.method !== "POST") return [405, { error: "only POST" }];
  const given = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
  if (!same(given, await token())) return [401, { error: "unauthorized" }];
  const message = await read(request);
  if (!message) return [400, { error: "the body is not {id, channel, to, text}" }];
  try {
    await sender.send({ ...message, id: `outbound:${message.id}` });
    return [200, { status: "sent" }];
  } catch (error) {
    log.warn(`a message nobody asked for was not taken by ${message.channel}: ${error?.message ?? error}`);
    return [error?.final ? 422 : 502, { error: cut(error?.message ?? error, 400) }];
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
