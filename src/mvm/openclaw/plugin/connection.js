/**
 * A short-lived connection to an OpenClaw Gateway over its WebSocket protocol.
 *
 * One connection serves one purpose and is closed after it, so an idle worker has no open socket and may be put to sleep.
 */
import { GatewayClient } from "openclaw/plugin-sdk/gateway-runtime";

const SCOPES = ["operator.read", "operator.write", "operator.admin"];
const MAX_TOKEN_IN_ERROR = 200;

/** The Gateway could not be reached, or it hung up. */
export class ConnectionLost extends Error {
  constructor(message) {
    super(message);
    this.name = "ConnectionLost";
  }
}

/**
 * Connect and wait for the hello; throws `ConnectionLost` when there is none within `timeoutMs`.
 *
 * `onEvent(name, payload)` gets the protocol's events, `lost` is a promise that rejects when the connection ends.
 * The peer must see a loopback source, else it grants no scopes (OpenClaw gives them to local token clients only).
 */
export async function connect({ url, token, timeoutMs, onEvent = () => {}, requestTimeoutMs = 30_000 }) {
  let client, settled = false;
  let fail;
  const lost = new Promise((_, reject) => (fail = reject));
  lost.catch(() => {});
  const gone = (why) => fail(new ConnectionLost(why));
  try {
    await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new ConnectionLost(`no hello within ${timeoutMs / 1000} s`)), timeoutMs);
      lost.catch((error) => {
        clearTimeout(timer);
        reject(error);
      });
      client = new GatewayClient({
        url,
        token,
        clientName: "gateway-client",
        clientDisplayName: "mvm",
        mode: "backend",
        role: "operator",
        scopes: SCOPES,
        deviceIdentity: null,
        sharedStateMode: "read-only",
        requestTimeoutMs,
        onHelloOk: () => {
          clearTimeout(timer);
          if (settled) return gone("the connection was made anew");
          settled = true;
          resolve();
        },
        onConnectError: (error) => gone(safe(error?.message ?? "cannot connect", token)),
        onClose: (code, reason) => gone(safe(`closed with ${code} ${reason ?? ""}`.trim(), token)),
        onEvent: (event) => onEvent(event.event, event.payload ?? {}),
      });
      client.start();
    });
  } catch (error) {
    client?.stop();
    throw error;
  }
  return {
    lost,
    request: (method, params, timeout = requestTimeoutMs) =>
      Promise.race([client.request(method, params, { timeoutMs: timeout }), lost]),
    close: () => client.stop(),
  };
}

/** An error text without the token it may quote. */
function safe(text, token) {
  return String(text).split(token).join("***").replace(/token=[^&\s"']+/g, "token=***").slice(0, MAX_TOKEN_IN_ERROR);
}
