/** `openclaw/plugin-sdk/gateway-runtime`: a client of the Gateway protocol. */
const KNOWN = [
  "clientDisplayName", "clientName", "clientVersion", "deviceIdentity", "mode", "onClose", "onConnectError", "onEvent", "onHelloOk",
  "requestTimeoutMs", "role", "scopes", "sharedStateMode", "token", "url",
];
const PROTOCOL = 4;
const RECONNECT_MS = 500;

/** An answer that a request was refused. */
class RequestError extends Error {
  constructor({ code, message, retryable, retryAfterMs, details }) {
    super(message);
    this.name = "GatewayClientRequestError";
    this.gatewayCode = code;
    this.retryable = retryable === true;
    this.retryAfterMs = retryAfterMs;
    this.details = details;
  }
}

export class GatewayClient {
  #options;
  #socket = null;
  #stopped = false;
  #pending = new Map();
  #serial = 0;
  #timer = null;

  constructor(options) {
    const unknown = Object.keys(options).filter((name) => !KNOWN.includes(name));
    if (unknown.length) throw new Error(`GatewayClient: unknown ${unknown.join(", ")}`);
    this.#options = options;
  }

  start() {
    if (this.#stopped || this.#socket) return;
    let socket;
    try {
      socket = new WebSocket(this.#options.url);
    } catch (error) {
      this.#options.onConnectError?.(error);
      return;
    }
    this.#socket = socket;
    let connected = false;
    socket.onmessage = (message) => {
      const frame = JSON.parse(message.data);
      if (frame.type === "event" && frame.event === "connect.challenge") {
        this.#hello().then(
          (hello) => {
            connected = true;
            this.#options.onHelloOk?.(hello);
          },
          (error) => {
            this.#options.onConnectError?.(error);
            socket.close(4008, "connect failed");
          },
        );
      } else if (frame.type === "event") this.#options.onEvent?.(frame);
      else if (frame.type === "res") this.#settle(frame);
    };
    socket.onerror = () => {
      if (!connected) this.#options.onConnectError?.(new Error("the connection could not be made"));
    };
    socket.onclose = (event) => {
      this.#socket = null;
      for (const { reject, timer } of this.#pending.values()) {
        clearTimeout(timer);
        reject(new Error(`gateway closed (${event.code}): ${event.reason}`));
      }
      this.#pending.clear();
      this.#options.onClose?.(event.code, event.reason);
      if (!this.#stopped) this.#timer = setTimeout(() => this.start(), RECONNECT_MS);
    };
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }

  request(method, params, { timeoutMs = this.#options.requestTimeoutMs ?? 30_000 } = {}) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return Promise.reject(new Error("gateway not connected"));
    const id = String((this.#serial += 1));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new Error(`gateway request timeout for ${method}`));
      }, timeoutMs);
      this.#pending.set(id, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ type: "req", id, method, params }));
    });
  }

  #hello() {
    const { clientName, clientDisplayName, mode, role = "operator", scopes = [], token } = this.#options;
    return this.request("connect", {
      minProtocol: PROTOCOL,
      maxProtocol: PROTOCOL,
      client: { id: clientName, ...(clientDisplayName ? { displayName: clientDisplayName } : {}), version: "2026.9.6", platform: process.platform, mode },
      role,
      scopes,
      auth: { token },
    });
  }

  #settle(frame) {
    const waiting = this.#pending.get(frame.id);
    if (!waiting) return;
    this.#pending.delete(frame.id);
    clearTimeout(waiting.timer);
    if (frame.ok) waiting.resolve(frame.payload);
    else waiting.reject(new RequestError(frame.error));
  }
}
