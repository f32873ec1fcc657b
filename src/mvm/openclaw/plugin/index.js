/**
 * The mvm plugin of OpenClaw. Its config names the role: `gateway` hands messages to workers, `worker` answers them.
 * Both serve the control socket, through which the guest agent checkpoints, restores and watches this OpenClaw.
 */
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
import { Activity } from "./activity.js";
import { ControlSocket, drainSeconds } from "./control.js";
import { GatewayRole } from "./gateway.js";
import { outboundHandler } from "./outbound.js";
import { Router, readSecret } from "./router.js";
import { Sender } from "./sending.js";
import { OwnGateway, Suspension } from "./suspension.js";
import { registerWorker } from "./worker.js";

export default definePluginEntry({
  id: "mvm",
  name: "mvm",
  description: "Joins OpenClaw to mvm",
  register(api) {
    const config = api.pluginConfig ?? {};
    const log = logger(api.logger);
    const activity = new Activity();
    if (config.role === "worker") registerWorker({ api, config, activity, log });
    if (api.registrationMode !== "full") return;
    if (config.role === "gateway") registerGateway({ api, config, activity, log });
    registerControl({ api, config, activity, log });
  },
});

function registerGateway({ api, config, activity, log }) {
  const router = new Router({ url: config.routerUrl, tokenFile: config.routerTokenFile });
  const sender = new Sender({ currentConfig: () => api.runtime.config.current() });
  const gateway = new GatewayRole({
    router,
    sender,
    activity,
    log,
    secretsDir: config.secretsDir,
    wakeTimeoutMs: (config.wakeTimeoutSeconds ?? 300) * 1000,
    turnTimeoutMs: (config.turnTimeoutSeconds ?? 3600) * 1000,
  });
  api.on("reply_dispatch", (event, ctx) => gateway.dispatch(event, ctx), { priority: 1000 });
  // A second lock on the same door: should a turn ever begin in the gateway, it ends before the model is asked.
  api.on("before_agent_run", () => ({ block: true, blockReason: "no turn runs inside an mvm gateway" }), { priority: 1000 });
  api.registerHttpRoute({
    path: "/mvm/outbound",
    auth: "plugin",
    match: "exact",
    handler: outboundHandler({ token: () => router.token(), sender, log }),
  });
}

function registerControl({ api, config, activity, log }) {
  let port = null;
  const own = new OwnGateway({
    port: () => port ?? api.config?.gateway?.port ?? 18789,
    tokens: async () => [process.env.OPENCLAW_GATEWAY_TOKEN, await readSecret(`${config.secretsDir}/openclaw/OPENCLAW_AUTH_TOKEN`).catch(() => null)],
    log,
  });
  const suspension = new Suspension({ gateway: own, activity, log });
  const status = () => ({ ok: true, role: config.role, ...activity.snapshot(), detail: null });
  const socket = new ControlSocket({
    path: config.controlSocket,
    activity,
    status,
    log,
    commands: {
      CHECKPOINT: async (argument) => ({ ...(await suspension.take(drainSeconds(argument))), ...nextAlarm(activity) }),
      RESTORE: () => suspension.release(),
      RELOAD_SECRETS: async () => {
        await own.call("secrets.reload");
        return { ok: true };
      },
      CHANNELS: async () => ({ ok: true, suppressed: await suppressedChannels(own) }),
      CHANNELS_START: async () => {
        for (const channel of await suppressedChannels(own)) await own.call("channels.start", { channel });
        return { ok: true };
      },
    },
  });
  api.registerService({
    id: "mvm-control",
    start: () => socket.listen(),
    stop: async () => {
      suspension.forget();
      await socket.close();
    },
  });
  api.on("gateway_start", (event, ctx) => {
    port = event?.port ?? ctx?.port ?? port;
    activity.ready = true;
  });
}

const nextAlarm = (activity) => ({ next_alarm_at: activity.snapshot().next_alarm_at });

/** Channels that OpenClaw holds back because it started uncleanly too often. */
async function suppressedChannels(own) {
  const status = await own.call("channels.status", {});
  const suppressed = status?.suppressed ?? status?.suppressedChannels ?? [];
  return Array.isArray(suppressed) ? suppressed.map(String) : [];
}

function logger(target) {
  return {
    info: (text) => target.info?.(`mvm: ${text}`),
    warn: (text) => target.warn?.(`mvm: ${text}`),
    error: (text) => target.error?.(`mvm: ${text}`),
  };
}
