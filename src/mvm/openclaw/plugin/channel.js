/**
 * Channel `mvm` of a worker: the way from this OpenClaw to its person when nobody asked (reminders, cron jobs, a message
 * that the assistant decides to send). It takes nothing in; what it is given goes to the worker's outbox, which brings it
 * to the person through the deployment's gateway.
 *
 * It is the worker's only channel, so the assistant can use it by name; reminders.js makes every job deliver to it.
 */
import { createHash, randomUUID } from "node:crypto";
import { runPassiveAccountLifecycle } from "openclaw/plugin-sdk/channel-outbound";
import { CHANNEL, PERSON } from "./person.js";
import { readSecret } from "./router.js";

const ACCOUNT = "default";
const TIMEOUT_MS = 10_000;
/** Characters; four bytes each at the most, which the outbox takes (128 KiB). */
const MAX_TEXT = 30_000;

/** The channel as OpenClaw's plugin API wants it. */
export function outboxChannel({ outboxUrl, outboxTokenFile, fetch = globalThis.fetch }) {
  const send = async ({ text, mediaUrl, deliveryQueueId }) => {
    const words = [text, mediaUrl ? `(A file that cannot be sent from here: ${mediaUrl})` : ""].filter(Boolean).join("\n");
    const id = deliveryQueueId ? `${deliveryQueueId}:${createHash("sha256").update(words).digest("hex").slice(0, 16)}` : randomUUID();
    await post({ outboxUrl, outboxTokenFile, fetch, id, text: words });
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
      textChunkLimit: MAX_TEXT,
      resolveTarget: () => ({ ok: true, to: PERSON }),
      sendText: send,
      sendMedia: send,
    },
  };
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
  if (response.status !== 202) throw new Error(`the outbox answered ${response.status}`);
}
