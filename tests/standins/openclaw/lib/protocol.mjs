/** The Gateway protocol: who may connect, and what every method takes. */
import { randomUUID, timingSafeEqual, createHash } from "node:crypto";
import { Refusal } from "./suspension.mjs";
import { violation } from "./stages.mjs";

const PROTOCOL = 4;
const CLIENTS = ["gateway-client", "cli", "openclaw-control-ui", "webchat"];
const MODES = ["backend", "cli", "ui", "webchat", "node"];
const HELLO_MS = 10_000;
const TICK_MS = 30_000;
const MAX_PAYLOAD = 25 * 1024 * 1024;

/** Parameters that each method knows (required ones marked with !), and the scope that it wants. */
const METHODS = {
  "chat.send": ["operator.write", "sessionKey! message! idempotencyKey! agentId attachments deliver originatingAccountId originatingChannel originatingThreadId originatingTo queueMode replyToId sessionId suppressCommandInterpretation systemInputProvenance systemProvenanceReceipt thinking timeoutMs workContext intent mentions"],
  "chat.history": ["operator.read", "sessionKey! agentId cursor limit maxBytes maxChars offset inputRunIds pendingBefore"],
  "chat.abort": ["operator.write", "sessionKey! agentId runId preserveSideRuns"],
  "sessions.create": ["operator.write", "agentId! key label model incognito"],
  "sessions.delete": ["operator.admin", "key! deleteTranscript"],
  "gateway.suspend.prepare": ["operator.admin", "requestId! drain terminalPolicy"],
  "gateway.suspend.status": ["operator.admin", "suspensionId!"],
  "gateway.suspend.resume": ["operator.admin", "suspensionId!"],
  "secrets.reload": ["operator.admin", ""],
  "channels.status": ["operator.read", "probe timeoutMs channel"],
  "channels.start": ["operator.admin", "channel! accountId"],
  "channels.stop": ["operator.admin", "channel! accountId"],
  "cron.list": ["operator.read", "includeDisabled limit offset"],
};

export class Protocol {
  #token;
  #methods;
  #clients = new Set();

  /** `token()` is the one that counts now; `methods[name](params, {scopes, answered})` does the work. */
  constructor({ token, methods }) {
    this.#token = token;
    this.#methods = methods;
  }

  /** Tell every connected client. */
  broadcast(event, payload) {
    for (const client of this.#clients) client.send(JSON.stringify({ type: "event", event, payload, seq: (client.seq += 1) }));
  }

  close() {
    for (const client of this.#clients) client.close(1012, "service restart");
  }

  serve(peer) {
    const nonce = randomUUID();
    let scopes = null;
    const late = setTimeout(() => peer.close(1008, "connect timeout"), HELLO_MS);
    peer.on("close", () => {
      clearTimeout(late);
      this.#clients.delete(peer);
    });
    peer.on("message", (text) => {
      let frame;
      try {
        frame = JSON.parse(text);
      } catch {
        return peer.close(1008, "invalid frame");
      }
      if (frame.type !== "req" || typeof frame.id !== "string" || typeof frame.method !== "string") return peer.close(1008, "invalid request frame");
      if (scopes !== null) return void this.#request(peer, frame, scopes);
      try {
        scopes = this.#hello(peer, frame);
        clearTimeout(late);
      } catch (error) {
        reply(peer, frame.id, false, error.shape ?? { code: "INVALID_REQUEST", message: String(error.message) });
        peer.close(1008, String(error.message).slice(0, 120));
      }
    });
    peer.send(JSON.stringify({ type: "event", event: "connect.challenge", payload: { nonce, ts: Date.now() } }));
  }

  #hello(peer, { id, method, params = {} }) {
    if (method !== "connect") throw new Refusal("INVALID_REQUEST", "invalid handshake: first request must be connect");
    const { minProtocol, maxProtocol, client = {}, role = "operator", scopes = [], auth = {} } = params;
    if (!(minProtocol <= PROTOCOL && maxProtocol >= PROTOCOL)) throw new Refusal("INVALID_REQUEST", "protocol mismatch");
    if (!CLIENTS.includes(client.id) || !MODES.includes(client.mode) || !client.version || !client.platform) throw new Refusal("INVALID_REQUEST", "invalid connect params");
    if (typeof auth.token !== "string" || !same(auth.token, this.#token())) throw new Refusal("INVALID_REQUEST", "unauthorized: gateway token mismatch");
    const local = /^(127\.|::1$|::ffff:127\.)/.test(peer.remoteAddress);
    if (!local) violation("only a loopback peer is given scopes", { peer: peer.remoteAddress });
    const granted = local ? scopes : [];
    peer.seq = 0;
    this.#clients.add(peer);
    reply(peer, id, true, {
      type: "hello-ok",
      protocol: PROTOCOL,
      server: { version: "2026.9.6", connId: randomUUID() },
      features: { methods: Object.keys(METHODS), events: ["chat", "tick"] },
      snapshot: { presence: [], health: {}, stateVersion: { presence: 0, health: 0 }, uptimeMs: Math.round(process.uptime() * 1000) },
      auth: { method: "token", role, scopes: granted },
      policy: { maxPayload: MAX_PAYLOAD, maxBufferedBytes: MAX_PAYLOAD, tickIntervalMs: TICK_MS },
    });
    return granted;
  }

  async #request(peer, { id, method, params = {} }, scopes) {
    const answered = [];
    try {
      const known = METHODS[method];
      if (!known || !this.#methods[method]) throw new Refusal("INVALID_REQUEST", `unknown method: ${method}`);
      const [scope, fields] = known;
      if (!scopes.includes(scope) && !scopes.includes("operator.admin")) throw new Refusal("FORBIDDEN", `missing scope: ${scope}`);
      checkParams(method, params, fields.split(" ").filter(Boolean));
      reply(peer, id, true, await this.#methods[method](params, { scopes, answered }));
      for (const then of answered) then();
    } catch (error) {
      reply(peer, id, false, error.shape ?? { code: "UNAVAILABLE", message: String(error?.message ?? error) });
    }
  }
}

function checkParams(method, params, fields) {
  const names = fields.map((field) => field.replace("!", ""));
  const unknown = Object.keys(params).filter((name) => !names.includes(name));
  const missing = fields.filter((field) => field.endsWith("!") && !(field.slice(0, -1) in params));
  const empty = ["sessionKey", "idempotencyKey", "requestId", "suspensionId"].filter((name) => name in params && (typeof params[name] !== "string" || !params[name]));
  if (unknown.length || missing.length || empty.length) {
    violation("parameters that the protocol does not know", { method, unknown, missing, empty });
    throw new Refusal("INVALID_REQUEST", `invalid ${method} params: ${[...unknown, ...missing, ...empty].join(", ")}`);
  }
}

function reply(peer, id, ok, body) {
  peer.send(JSON.stringify({ type: "res", id, ok, ...(ok ? { payload: body ?? {} } : { error: body }) }));
}

function same(left, right) {
  const digest = (value) => createHash("sha256").update(value).digest();
  return timingSafeEqual(digest(left), digest(right));
}
