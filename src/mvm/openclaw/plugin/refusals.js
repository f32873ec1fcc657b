/**
 * What a failed send means, read from OpenClaw's error and what it was made of. Pure functions.
 *
 * Telegram's errors hold `error_code` and `parameters.retry_after`, Discord's `status` and `retryAfter` (both in seconds),
 * or only a `kind` or a sentence where OpenClaw has put words of its own in their place.
 */
const MAX_CAUSES = 32;
const MAX_RETRY_AFTER_MS = 5 * 60_000;
/** 404 is no answer about the message at Telegram: the token of the bot is wrong, and another one may come. */
const PERMANENT = { telegram: [400, 403], other: [400, 403, 404] };

const TELEGRAM_FORBIDS = /\bTelegram send failed: (?:bot is not a member of the chat|chat not found)\b/;
const DISCORD_FORBIDS = ["dm-blocked", "missing-permissions"];

/** The error and everything that it was made of, outermost first. */
function causes(error) {
  const found = [];
  const left = [error];
  while (left.length && found.length < MAX_CAUSES) {
    const one = left.shift();
    if (!one || typeof one !== "object" || found.includes(one)) continue;
    found.push(one);
    left.push(one.cause, one.error, one.reason, ...(Array.isArray(one.errors) ? one.errors : []));
  }
  return found;
}

/** OpenClaw was asked to send under an id whose sending has begun before. */
export function isTaken(error) {
  return causes(error).some((one) => /\bdelivery intent is already queued\b/i.test(String(one.message ?? "")));
}

/** The channel's answer that it does not take the message: `{code, telegram}`; null when it did not say so. */
export function refusalOf(error) {
  for (const one of causes(error)) {
    if (isRejectedBefore(one)) return { code: 400, telegram: true };
    if (TELEGRAM_FORBIDS.test(String(one.message ?? ""))) return { code: 403, telegram: true };
    if (DISCORD_FORBIDS.includes(one.kind)) return { code: 403, telegram: false };
    const telegram = typeof one.error_code === "number";
    const code = telegram ? one.error_code : one.status;
    if (Number.isInteger(code) && code >= 400 && code < 600) return { code, telegram };
  }
  return null;
}

/** A refusal that no repetition would change: the chat is not there, the person has blocked the bot. */
export function isPermanent({ code, telegram }) {
  return (telegram ? PERMANENT.telegram : PERMANENT.other).includes(code);
}

/** How long the channel asks to be left alone. */
export function retryAfterMs(error) {
  for (const one of causes(error)) {
    const seconds = one.parameters?.retry_after ?? one.retryAfter;
    if (typeof seconds === "number" && seconds > 0) return Math.min(seconds * 1000, MAX_RETRY_AFTER_MS);
  }
  return 0;
}

/** OpenClaw's word that the channel will never take it, given before the channel was asked. */
function isRejectedBefore(error) {
  return error.code === "OPENCLAW_PLATFORM_MESSAGE_NOT_DISPATCHED" && error.retryable === false;
}
