/**
 * The mvm plugin of OpenClaw. Its config names the role: `gateway` hands messages to workers, `worker` answers them.
 * Both serve the control socket, through which the guest agent checkpoints, restores and watches this OpenClaw.
 *
 * OpenClaw registers a plugin more than once in a process: again after a change of configuration, and once more for the
 * registry that an agent's turn runs with (mode `discovery`). Hooks are therefore registered every time, and what they
 * work on lives once per process.
 */
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
import { Activity } from "./activity.js";
import { Alarms } from "./alarms.js";
import { configApplied } from "./applied.js";
import { ControlSocket, drainSeconds } from "./control.js";
import { GatewayRole } from "./gateway.js";
import { outboundHandler } from "./outbound.js";
import { forgetRandomness } from "./randomness.js";
import { Recovery } from "./recovery.js";
import { readSecret, Router } from "./router.js";
import { Sender } from "./sending.js";
import { OwnGateway, Suspension } from "./suspension.js";
import { WARM_UP_MS, warmUp } from "./warmup.js";
import { registerChannel, registerWorkerHooks, watchTurns } from "./worker.js";

const PROCESS_STATE = Symbol.for("mvm.openclaw.plugin");
const WITHOUT_RUNTIME = new Set(["cli-metadata", "setup-only"]);

export default definePluginEntry({
  id: "mvm",
  name: "mvm",
  description: "Joins OpenClaw to mvm",
  register(api) {
    const config = api.pluginConfig ?? {};
    if (config.role === "worker" && api.registrationMode !== "tool-discovery") registerChannel({ api, config });
    if (WITHOUT_RUNTIME.has(api.registrationMode)) return;
    const state = (globalThis[PROCESS_STATE] ??= processState({ api, config }));
    const full = api.registrationMode === "full";
    state.currentConfig = () => api.runtime.config.current();
    if (config.role === "gateway") registerGateway({ api, state, full });
    if (config.role === "worker") {
      registerWorkerHooks({ api, state });
      if (full) watchTurns({ api, state });
    }
    if (full) registerControl({ api, config, state });
  },
});

function processState({ api, config }) {
  const log = logger(api.logger);
  const activity = new Activity();
  const state = { activity, log, alarms: new Alarms({ activity, log }), recovery: new Recovery(), port: api.config?.gateway?.port ?? 18789 };
  const ownToken = () => readSecret(`${config.secretsDir}/openclaw/OPENCLAW_AUTH_TOKEN`).catch(() => null);
  state.own = new OwnGateway({
    port: () => state.port,
    tokens: async () => [process.env.OPENCLAW_GATEWAY_TOKEN, await ownToken()],
  });
  state.suspension = new Suspension({ gateway: state.own, activity, log });
  if (config.role !== "gateway") return state;
  state.router = new Router({ url: config.routerUrl, tokenFile: config.routerTokenFile });
  state.sender = new Sender({ currentConfig: () => api.runtime.config.current() });
  state.gateway = new GatewayRole({
    router: state.router,
    sender: state.sender,
    activity,
    log,
    secretsDir: config.secretsDir,
    wakeTimeoutMs: (config.wakeTimeoutSeconds ?? 300) * 1000,
    turnTimeoutMs: (config.turnTimeoutSeconds ?? 24 * 3600) * 1000,
  });
  return state;
}

function registerGateway({ api, state, full }) {
  const { gateway, router, sender, log } = state;
  sender.currentConfig = () => api.runtime.config.current();
  api.on("reply_dispatch", (event, ctx) => gateway.dispatch(event, ctx), { priority: 1000 });
  // A second lock on the same door: should a turn ever begin in the gateway, it ends before the model is asked.
  const locked = () => ({ outcome: "block", block: true, reason: "no turn runs inside an mvm gateway" });
  api.on("before_agent_run", locked, { priority: 1000 });
  if (!full) return;
  const handler = outboundHandler({ token: () => router.token(), sender, log });
  api.registerHttpRoute({ path: "/mvm/outbound", auth: "plugin", match: "exact", handler });
}

function registerControl({ api, config, state }) {
  const { activity, suspension, own, log } = state;
  const applied = () => configApplied({ path: process.env.OPENCLAW_CONFIG_PATH, current: () => state.currentConfig() });
  const socket = new ControlSocket({
    path: config.controlSocket,
    activity,
    status: () => ({ ok: true, role: config.role, ...activity.snapshot(), detail: null }),
    log,
    limits: { WARM_UP: WARM_UP_MS },
    commands: {
      CHECKPOINT: async (argument) => {
        const answer = await suspension.take(drainSeconds(argument));
        await state.alarms.reread();
        return { ...answer, next_alarm_at: activity.snapshot().next_alarm_at };
      },
      RESTORE: () => suspension.release(),
      CONFIG_APPLIED: async () => {
        await applied();
        return { ok: true };
      },
      FORGET_RANDOMNESS: async () => {
        await forgetRandomness();
        return { ok: true };
      },
      ...(config.role === "worker" ? { WARM_UP: () => warmUp({ gateway: own }) } : {}),
      RELOAD_SECRETS: async () => {
        // While it takes in another configuration it gives up the re-reading that is under way.
        await applied();
        await own.call("secrets.reload");
        return { ok: true };
      },
      CHANNELS: async () => ({ ok: true, suppressed: await own.suppressedChannels() }),
      CHANNELS_START: async () => {
        for (const channel of await own.suppressedChannels()) await own.call("channels.start", { channel });
        return { ok: true };
      },
    },
  });
  api.registerService({
    id: "mvm-control",
    start: async (ctx) => {
      state.alarms.adopt(ctx.getCron);
      await socket.listen();
    },
    stop: () => socket.close(),
  });
  api.on("gateway_start", (event, ctx) => {
    state.port = event?.port ?? ctx?.port ?? state.port;
    activity.ready = true;
  });
  api.on("gateway_stop", () => suspension.forget());
}

function logger(target) {
  return {
    info: (text) => target.info?.(`mvm: ${text}`),
    warn: (text) => target.warn?.(`mvm: ${text}`),
    error: (text) => target.error?.(`mvm: ${text}`),
  };
}
