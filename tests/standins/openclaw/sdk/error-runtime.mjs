/** `openclaw/plugin-sdk/error-runtime`: what mvm's plugin uses of it. */

/** A channel's word that nobody has seen the message: it is tried again, unless `retryable` is false. */
export class PlatformMessageNotDispatchedError extends Error {
  constructor(message, { cause, retryable = true }) {
    super(message, { cause });
    this.name = "PlatformMessageNotDispatchedError";
    this.code = "OPENCLAW_PLATFORM_MESSAGE_NOT_DISPATCHED";
    this.retryable = retryable;
  }
}
