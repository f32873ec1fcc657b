/**
 * The router of this gateway (a service of mvm on loopback): the journal of deliveries and the way to the workers.
 */
import { readFile } from "node:fs/promises";
import { cut } from "./message.js";
import { backoff, pause } from "./order.js";

const REQUEST_TIMEOUT_MS = 15_000;
const WAKE_REQUEST_TIMEOUT_MS = 130_000;
const MAX_ANSWER = 1024 * 1024;

/** The router refused a request, or could not be reached. `notice` may be shown to the person, the message is for the operator. */
export class RouterError extends Error {
  constructor(message, { status = 0, notice = null, retry = true } = {}) {
    super(message);
    this.name = "RouterError";
    this.status = status;
    this.notice = notice;
    this.retry = retry;
  }
}

/** First line of a secret file. Read at each use: a rotated secret counts at once. */
export async function readSecret(path) {
  const text = (await readFile(path, "utf8")).trim();
  if (!text) throw new Error("a token file is empty");
  return text;
}

export class Router {
  #url;
  #tokenFile;

  constructor({ url, tokenFile }) {
    this.#url = url.replace(/\/$/, "");
    this.#tokenFile = tokenFile;
  }

  token() {
    return readSecret(this.#tokenFile);
  }

  /** Where the Gateway protocol of that worker is reached; GatewayClient cannot send headers, so the token is in the query. */
  async workerUrl(worker, trace) {
    const base = this.#url.replace(/^http/, "ws");
    return `${base}/v1/workers/${encodeURIComponent(worker)}/ws?token=${encodeURIComponent(await this.token())}&trace=${encodeURIComponent(trace)}`;
  }

  /** Journal a delivery; tells whether it is new, open or answered, and which worker serves the peer. */
  begin({ key, peer, conversation, textLength }, signal) {
    return this.#persistently("POST", "/v1/deliveries", { key, peer, conversation, text_preview_len: textLength }, signal);
  }

  /** Record the answer before it is sent, so that a re-dispatch sends this one instead of asking the worker again. */
  answered(key, payload) {
    return this.#persistently("POST", `/v1/deliveries/${encodeURIComponent(key)}/answered`, { payload });
  }

  /** Record that the channel took the answer. */
  sent(key) {
    return this.#persistently("POST", `/v1/deliveries/${encodeURIComponent(key)}/sent`, {});
  }

  /** Record that there will be no answer but `notice`; `reason` goes to the operator. */
  failed(key, { reason, notice }) {
    return this.#persistently("POST", `/v1/deliveries/${encodeURIComponent(key)}/failed`, { reason: cut(reason, 500), notice });
  }

  /** Ask for a running worker, for the message `trace`; resolves when it runs, throws `RouterError` with an honest `notice` when it does not. */
  async wake(worker, { trace, deadline, signal }) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        await this.#request("POST", `/v1/workers/${encodeURIComponent(worker)}/wake`, { trace }, WAKE_REQUEST_TIMEOUT_MS, signal);
        return;
      } catch (error) {
        const wait = backoff(attempt);
        if (signal?.aborted || !error.retry || Date.now() + wait >= deadline) throw error;
        await pause(wait, signal);
      }
    }
  }

  /** The journal must hear of it: a router that is being restarted is waited for (it is back in seconds). */
  async #persistently(method, path, body, signal) {
    const deadline = Date.now() + 120_000;
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.#request(method, path, body, REQUEST_TIMEOUT_MS, signal);
      } catch (error) {
        const wait = backoff(attempt);
        if (signal?.aborted || !error.retry || Date.now() + wait >= deadline) throw error;
        await pause(wait, signal);
      }
    }
  }

  async #request(method, path, body, timeoutMs, signal) {
    let response, text;
    try {
      response = await fetch(this.#url + path, {
        method,
        redirect: "error",
        signal: AbortSignal.any([AbortSignal.timeout(timeoutMs), ...(signal ? [signal] : [])]),
        headers: { "content-type": "application/json", authorization: `Bearer ${await this.token()}` },
        body: JSON.stringify(body),
      });
      text = await response.text();
    } catch (error) {
      throw new RouterError(`the router does not answer (${error?.cause?.code ?? error?.code ?? error?.name ?? "error"})`);
    }
    const answer = parse(text);
    if (response.ok) return answer ?? {};
    throw new RouterError(`the router answered ${response.status}: ${cut(answer?.reason ?? "no reason given", 300)}`, {
      status: response.status,
      notice: typeof answer?.error === "string" ? answer.error : null,
      retry: answer?.retry ?? response.status >= 500,
    });
  }
}

function parse(text) {
  if (!text || text.length > MAX_ANSWER) return null;
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}
