/** Puts the stand-in together, as its configuration says, and ends it in order. */
import { randomUUID } from "node:crypto";
import { appendFileSync, mkdirSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { Agent } from "./agent.mjs";
import { Boots } from "./boots.mjs";
import { Config, ConfigProblem } from "./config.mjs";
import { Cron } from "./cron.mjs";
import { Outbound } from "./outbound.mjs";
import { Plugins } from "./plugins.mjs";
import { Protocol } from "./protocol.mjs";
import { process as running } from "./running.mjs";
import { Sessions } from "./sessions.mjs";
import { setting, useDirectory } from "./stages.mjs";
import { Refusal, SuspensionDesk } from "./suspension.mjs";
import { Telegram } from "./telegram.mjs";
import { accept } from "./websocket.mjs";

const CONFIG_ERROR = 78;
const DRAIN_MS = 315_000;

export async function main() {
  const directory = process.env.OPENCLAW_STATE_DIR;
  const path = process.env.OPENCLAW_CONFIG_PATH;
  if (!directory || !path) fail(1, "OPENCLAW_STATE_DIR and OPENCLAW_CONFIG_PATH must be set");
  mkdirSync(join(directory, "standin"), { recursive: true });
  useDirectory(join(directory, "standin"));
  await new Promise((resolve) => setTimeout(resolve, setting("start-delay-ms", 0)));
  try {
    await new OpenClaw(new Config(path), directory).run();
  } catch (error) {
    if (error instanceof ConfigProblem) fail(CONFIG_ERROR, `Config invalid: ${error.message}`);
    fail(1, error?.code === "EADDRINUSE" ? `another gateway instance is already listening: ${error.message}` : (error?.stack ?? String(error)));
  }
}

function fail(status, message) {
  console.error(message);
  process.exit(status);
}

class OpenClaw {
  constructor(config, directory) {
    this.config = config;
    this.directory = directory;
    this.token = config.secret(config.current().gateway.auth.token, "gateway.auth.token");
    this.boots = new Boots(directory);
    this.ready = false;
    this.ending = false;
    this.suppressed = [];
    this.log = (text) => log(config, text);
    this.plugins = new Plugins({ config, log: this.log });
    this.telegram = config.current().channels?.telegram ? new Telegram({ config, directory, plugins: this.plugins, log: this.log }) : null;
    this.outbound = new Outbound({ directory, senders: this.telegram ? { telegram: (message) => this.telegram.send(message) } : {} });
    this.agent = new Agent({ config, plugins: this.plugins });
    this.protocol = new Protocol({ token: () => this.token, methods: this.#methods() });
    this.sessions = new Sessions({
      directory,
      turn: (turn) => this.agent.turn(turn),
      broadcast: (payload) => this.protocol.broadcast("chat", payload),
      agentEvent: (event) => this.plugins.agentEvent(event),
      status: (session) => `🦞 OpenClaw 2026.9.6 (stand-in)\n🧠 Model: ${config.current().agents?.defaults?.model?.primary}\n🧵 Session: ${session.key}`,
      log: this.log,
    });
    this.desk = new SuspensionDesk({ blockers: () => this.#blockers(), resumed: () => {} });
    this.cron = new Cron({
      directory,
      run: (job) => this.#runJob(job),
      deliver: (delivery) => this.#announce(delivery),
      changed: (event) => this.plugins.tell("cron_changed", event, { getCron: () => this.cron }),
      paused: () => this.desk.held || !this.ready || this.ending,
      log: this.log,
    });
    this.agent.use(this.cron);
    Object.assign(running, { config, outbound: this.outbound });
  }

  async run() {
    const { gateway, cron = {} } = this.config.current();
    for (const [what, ref] of this.config.refs()) this.config.secret(ref, what);
    await this.plugins.load();
    this.server = createServer((request, response) => void this.#serve(request, response));
    this.server.on("upgrade", (request, socket, head) => {
      const peer = accept(request, socket, head);
      if (peer) this.protocol.serve(peer);
    });
    await new Promise((resolve, reject) => {
      this.server.once("error", reject);
      this.server.listen(gateway.port, "127.0.0.1", resolve);
    });
    if (this.boots.begin()) {
      this.suppressed = this.telegram ? ["telegram"] : [];
      this.log("channel autostart suppressed by crash-loop breaker");
    }
    await this.plugins.start({ getCron: () => this.cron });
    this.sessions.recover();
    this.telegram && !this.suppressed.length && this.telegram.start();
    const scheduling = cron.enabled !== false;
    if (scheduling) this.cron.start();
    this.ready = true;
    await this.plugins.tell("gateway_start", { port: gateway.port }, { port: gateway.port });
    await this.plugins.tell("cron_reconciled", { enabled: scheduling }, { getCron: () => this.cron });
    this.config.watch({ changed: (before, after) => this.#reloaded(before, after), wrong: (error) => this.log(`config reload skipped: ${error.message}`) });
    process.on("SIGTERM", () => void this.#end());
    process.on("SIGINT", () => void this.#end());
    this.log(`ready on 127.0.0.1:${gateway.port}`);
  }

  async #end() {
    if (this.ending) return;
    this.ending = true;
    this.log("SIGTERM: draining");
    this.cron.stop();
    await new Promise((resolve) => setTimeout(resolve, setting("stop-delay-ms", 0)));
    await this.telegram?.shutdown(DRAIN_MS);
    await Promise.race([this.sessions.drained(), new Promise((resolve) => setTimeout(resolve, DRAIN_MS))]);
    this.protocol.close();
    this.server.close();
    await this.plugins.stop();
    this.boots.end();
    process.exit(0);
  }

  #reloaded(before, after) {
    this.log("config reloaded");
    if (JSON.stringify(before.gateway) !== JSON.stringify(after.gateway)) this.log("gateway settings count after a restart");
    if (JSON.stringify(before.channels) === JSON.stringify(after.channels)) return;
    this.telegram?.stop();
    if (after.channels?.telegram && this.telegram) this.telegram.start();
  }

  async #serve(request, response) {
    const { pathname } = new URL(request.url, "http://127.0.0.1");
    const health = { "/healthz": true, "/startupz": this.ready, "/readyz": this.ready && !this.desk.held && !this.ending }[pathname];
    if (health !== undefined) {
      response.writeHead(health ? 200 : 503, { "content-type": "application/json" });
      return void response.end(JSON.stringify({ ok: health, ready: health, ...(pathname === "/readyz" ? { suppressed: this.suppressed } : {}) }));
    }
    const handler = this.plugins.route(pathname);
    if (handler && (await handler(request, response).catch((error) => this.log(`route ${pathname}: ${error.message}`)))) return;
    if (!response.headersSent) response.writeHead(404).end("Not Found");
  }

  #blockers() {
    const found = [];
    if (this.sessions.running) found.push({ kind: "chat-run", count: this.sessions.running, message: "a turn runs" });
    if (this.cron.running) found.push({ kind: "cron-run", count: this.cron.running, message: "a job runs" });
    if (this.telegram?.running) found.push({ kind: "reply-dispatch", count: this.telegram.running, message: "a message is dealt with" });
    return found;
  }

  #methods() {
    return {
      "chat.send": (params, { scopes, answered }) => this.sessions.send({ ...params, scopes, answered, admitted: () => !this.desk.held && !this.ending }),
      "chat.history": (params) => this.sessions.history(params),
      "chat.abort": (params) => this.sessions.abort(params),
      "sessions.create": (params) => this.sessions.create(params),
      "sessions.delete": (params) => this.sessions.remove(params),
      "gateway.suspend.prepare": (params) => this.desk.prepare(params),
      "gateway.suspend.status": (params) => this.desk.status(params),
      "gateway.suspend.resume": (params) => this.desk.resume(params),
      "secrets.reload": () => this.#reloadSecrets(),
      "channels.status": () => ({ channels: this.telegram ? { telegram: { state: this.telegram.state } } : {} }),
      "channels.start": ({ channel }) => this.#startChannel(channel),
      "channels.stop": ({ channel }) => {
        if (channel === "telegram") this.telegram?.stop();
        return { ok: true };
      },
      "cron.list": async (params) => ({ jobs: await this.cron.list(params) }),
    };
  }

  #reloadSecrets() {
    try {
      this.config.reloadSecrets();
    } catch (error) {
      throw new Refusal("UNAVAILABLE", `secrets.reload failed: ${error.message}`);
    }
    this.token = this.config.secret(this.config.current().gateway.auth.token, "gateway.auth.token");
    if (this.telegram && !this.suppressed.length) {
      this.telegram.stop();
      this.telegram.start();
    }
    return { ok: true, warningCount: 0 };
  }

  #startChannel(channel) {
    if (channel !== "telegram" || !this.telegram) throw new Refusal("INVALID_REQUEST", `unknown channel: ${channel}`);
    this.suppressed = [];
    this.telegram.start();
    return { ok: true, channel };
  }

  async #runJob(job) {
    const runId = randomUUID();
    await this.plugins.tell("cron_changed", { action: "started", jobId: job.id }, { getCron: () => this.cron });
    this.plugins.agentEvent({ runId, stream: "lifecycle", data: { phase: "start" } });
    const prompt = `[cron:${job.id} ${job.name ?? ""}] ${job.payload.message}\nCurrent time: ${new Date().toISOString()}`;
    try {
      return await this.agent.turn({ messages: [{ role: "user", content: [{ type: "text", text: prompt }] }], sessionKey: `cron:${job.id}` });
    } finally {
      this.plugins.agentEvent({ runId, stream: "lifecycle", data: { phase: "end" } });
    }
  }

  /** Hand what a job had to say to the channel that it names, else to the only one there is. */
  async #announce({ id, delivery, text }) {
    const { channels } = this.plugins;
    const channel = delivery.channel ? channels.find((item) => item.id === delivery.channel) : channels[0];
    if (!channel) throw new Error("Channel is required (no configured channels detected)");
    const to = delivery.to ?? channel.config.resolveDefaultTo?.({ cfg: this.config.current() });
    await channel.outbound.sendText({ cfg: this.config.current(), to, text, accountId: "default", deliveryQueueId: id });
  }
}

function log(config, text) {
  const line = `${new Date().toISOString()} ${text}`;
  console.log(line);
  const { file } = config.current().logging ?? {};
  if (!file) return;
  mkdirSync(dirname(file), { recursive: true });
  appendFileSync(file, `${line}\n`);
}
