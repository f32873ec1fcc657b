/** `openclaw/plugin-sdk/channel-outbound`: what mvm's plugin uses of it. */
import { process as running } from "../lib/running.mjs";

const KNOWN = ["accountId", "cfg", "channel", "completionRetention", "deliveryIntentId", "payloads", "reusePendingDeliveryIntent", "to"];

/** Send payloads through a channel, durably when they have an intent id. */
export async function sendDurableMessageBatch(params) {
  const unknown = Object.keys(params).filter((name) => !KNOWN.includes(name));
  if (unknown.length) throw new Error(`sendDurableMessageBatch: unknown ${unknown.join(", ")}`);
  if (params.cfg !== running.config.current()) throw new Error("sendDurableMessageBatch: cfg is not the current configuration");
  return running.outbound.send(params);
}

/** Keep the account of a channel that takes nothing in "running" until it is stopped. */
export async function runPassiveAccountLifecycle({ abortSignal, start, stop }) {
  const handle = await start();
  await new Promise((resolve) => {
    if (abortSignal?.aborted) resolve();
    else abortSignal?.addEventListener("abort", () => resolve(), { once: true });
  });
  await stop?.(handle);
}
