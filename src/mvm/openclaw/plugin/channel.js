/**
 * Channel `mvm` of a worker: the way from this OpenClaw to its person when nobody asked (reminders, cron jobs, a message
 * that the assistant decides to send). It takes nothing in; what it is given goes to the worker's outbox, which brings it
 * to the person through the deployment's gateway.
 *
 * It is the worker's only channel, so the assistant can use it by name; reminders.js makes every job deliver to it.
 */
import { createHash, randomUUID } from "node:crypto";
import { runPassiveAccountLifecycle } from "openclaw/plugin-sdk/channel-outbound";
import { PlatformMessageNotDispatchedError } from "openclaw/plugin-sdk/error-runtime";
import { backoff, pause } from "./order.js";
import { CHANNEL, PERSON } from "./person.js";
import { readSecret } from "./router.js";

const ACCOUNT = "default";
const TIMEOUT_MS = 10_000;
/** How long the outbox is asked to take a message before OpenClaw hears that it was not sent. */
const PATIENCE_MS = 5 * 60_000;
const LONGEST_WAIT_MS = 15_000;
/** Characters of one message; four bytes each at the most, which the outbox takes (128 KiB). */
const MAX_TEXT = 30_000;
/** Statuses of the outbox that no repetition will change. */
const NEVER = [400, 413, 422];

/** The channel as OpenClaw's plugin API wants it. */
export function outboxChannel({ outboxUrl, outboxTokenFile, fetch = globalThis.fetch, wait = pause, now = Date.now }) {
  const send = async ({ text, mediaUrl, deliveryQueueId }) => {
    const words = [text, mediaUrl ? `(A file that cannot be sent from here: ${mediaUrl})` : ""].filter(Boolean).join("\n");
    const id = deliveryQueueId ? `${deliveryQueueId}:${createHash("sha256").update(words).digest("hex").slice(0, 16)}` : randomUUID();
    for (const [index, piece] of pieces(words).entries()) {
      await persist({ outboxUrl, outboxTokenFile, fetch, wait, now, id: index ? `${id}.${index}` : id, text: piece });
    }
    return { channel: CHANNEL, messageId: id, chatId: PERSON };
  };
  return {
    id: CHANNEL,
    meta: {
      id: CHANNEL,
      label: "mvm",
      selectionLabel: "mvm",
      docsPath: "/channels/mvm",
      blurb: "Brings messages to the person through the deployment's gateway.",
      markdownCapable: true,
    },
    capabilities: { chatTypes: ["direct"] },
    config: {
      listAccountIds: () => [ACCOUNT],
      resolveAccount: () => ({ accountId: ACCOUNT, enabled: true, configured: true }),
      inspectAccount: () => ({ enabled: true, configured: true }),
      isEnabled: () => true,
      isConfigured: () => true,
      resolveAllowFrom: () => [PERSON],
      resolveDefaultTo: () => PERSON,
    },
    messaging: {
      normalizeTarget: () => PERSON,
      targetResolver: { looksLikeId: () => true, hint: PERSON },
    },
    gateway: {
      // Nothing is taken in; an account that does not run would count as one that broke down.
      startAccount: ({ abortSignal }) => runPassiveAccountLifecycle({ abortSignal, start: async () => null }),
    },
    outbound: {
      deliveryMode: "direct",
      resolveTarget: () => ({ ok: true, to: PERSON }),
      sendText: send,
      sendMedia: send,
    },
  };
}

/** The text in pieces that the outbox takes, cut at the end of a line where there is one. */
export function pieces(text) {
  const found = [];
  let rest = text;
  while (rest.length > MAX_TEXT) {
    const line = rest.lastIndexOf("\n", MAX_TEXT - 1) + 1;
    const half = /[\uD800-\uDBFF]/.test(rest[MAX_TEXT - 1]) ? 1 : 0;
    const end = line > MAX_TEXT / 2 ? line : MAX_TEXT - half;
    found.push(rest.slice(0, end));
    rest = rest.slice(end);
  }
  return rest || !found.length ? [...found, rest] : found;
}

/**
 * Have the outbox take it, asked again under the same id while it restarts or its disk is full. What OpenClaw is told when
 * that lasts is that nothing was sent, so that it tries again: of any other error it believes that the person may have the
 * message, and drops it. Should the outbox have written it down and not been able to say so, it comes twice.
 */
async function persist({ wait, now, ...message }) {
  const until = now() + PATIENCE_MS;
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await post(message);
    } catch (error) {
      const never = NEVER.includes(error.status);
      const milliseconds = backoff(attempt, 500, LONGEST_WAIT_MS);
      if (never || now() + milliseconds >= until) throw new PlatformMessageNotDispatchedError(error.message, { cause: undefined, retryable: !never });
      await wait(milliseconds);
    }
  }
}

async function post({ outboxUrl, outboxTokenFile, fetch, id, text }) {
  const response = await fetch(`${outboxUrl}/v1/outbound`, {
    method: "POST",
    redirect: "error",
    signal: AbortSignal.timeout(TIMEOUT_MS),
    headers: {
      "content-type": "application/json",
      authorization: `Bearer ${await readSecret(outboxTokenFile)}`,
      "idempotency-key": id,
    },
    body: JSON.stringify({ id, text }),
  });
  await response.body?.cancel();
  if (response.status !== 202) throw Object.assign(new Error(`the outbox answered ${response.status}`), { status: response.status });
}
