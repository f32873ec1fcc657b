/** Loads plugins as OpenClaw does and gives them the part of its API that mvm's plugin may use. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { ConfigProblem } from "./config.mjs";
import { violation } from "./stages.mjs";

const HOOKS = [
  "after_tool_call", "agent_end", "before_agent_reply", "before_agent_run", "before_dispatch", "before_tool_call", "cron_changed", "cron_reconciled",
  "gateway_start", "gateway_stop", "inbound_claim", "message_received", "message_sending", "message_sent", "reply_dispatch", "reply_payload_sending", "session_end",
  "session_start",
];
const NEEDS_CONVERSATION = new Set(["reply_dispatch", "before_agent_run", "before_agent_reply"]);

/** What plugins have registered in one mode. */
class Registry {
  hooks = new Map();
  services = [];
  routes = [];
  channels = [];

  constructor(mode) {
    this.mode = mode;
  }
}

/**
 * OpenClaw registers a plugin several times in a process: `full` for the gateway, and `discovery` for the registry that
 * an agent's turns run with. A hook of a turn that is registered in `full` only never hears anything.
 */
export class Plugins {
  #config;
  #log;
  #found = [];
  #full = new Registry("full");
  #turns = null;
  #agentListeners = new Set();

  constructor({ config, log }) {
    this.#config = config;
    this.#log = log;
  }

  get channels() {
    return this.#full.channels;
  }

  async load() {
    const { plugins = {} } = this.#config.current();
    for (const path of plugins.load?.paths ?? []) {
      const manifest = JSON.parse(readFileSync(join(path, "openclaw.plugin.json"), "utf8"));
      const entry = plugins.entries?.[manifest.id];
      if (!plugins.allow?.includes(manifest.id) || entry?.enabled === false) {
        this.#log(`plugin ${manifest.id} is not allowed`);
        continue;
      }
      const problem = check(manifest.configSchema ?? {}, entry?.config ?? {}, `plugins.entries.${manifest.id}.config`);
      if (problem) throw new ConfigProblem(problem);
      const { openclaw } = JSON.parse(readFileSync(join(path, "package.json"), "utf8"));
      for (const extension of openclaw.extensions) {
        const module = await import(pathToFileURL(resolve(path, extension)).href);
        this.#found.push({ id: manifest.id, entry: entry ?? {}, plugin: module.default });
      }
    }
    this.#register(this.#full);
  }

  /** Ask the handlers of a hook in the order of their priority; the first that gives something decides. */
  ask(name, event, ctx) {
    return first(this.#full, name, event, ctx);
  }

  /** As `ask`, for a hook inside an agent's turn. */
  askInTurn(name, event, ctx = {}) {
    this.#turns ??= this.#register(new Registry("discovery"));
    return first(this.#turns, name, event, ctx);
  }

  /** Tell every handler of a hook; a failing one is logged. */
  async tell(name, event, ctx = {}) {
    for (const { handler } of this.#full.hooks.get(name) ?? []) {
      try {
        await handler(event, ctx);
      } catch (error) {
        this.#log(`hook ${name} failed: ${error?.message ?? error}`);
      }
    }
  }

  agentEvent(event) {
    for (const listener of this.#agentListeners) listener(event);
  }

  async start(ctx) {
    for (const service of this.#full.services) await service.start(ctx);
  }

  async stop() {
    await this.tell("gateway_stop", {});
    for (const service of this.#full.services) await service.stop?.({});
  }

  /** The handler for an HTTP path, or null. */
  route(path) {
    const found = this.#full.routes.find((route) => (route.match === "prefix" ? path.startsWith(route.path) : path === route.path));
    return found?.handler ?? null;
  }

  #register(registry) {
    for (const { id, entry, plugin } of this.#found) plugin.register(this.#api(registry, id, entry));
    return registry;
  }

  #api(registry, id, entry) {
    const config = this.#config;
    const log = (level) => (text) => this.#log(`[plugins] ${level}: ${text}`);
    return {
      id,
      registrationMode: registry.mode,
      config: config.current(),
      pluginConfig: entry.config ?? {},
      logger: { debug: () => {}, info: log("info"), warn: log("warn"), error: log("error") },
      runtime: {
        config: { current: () => config.current() },
        events: {
          onAgentEvent: (listener) => {
            this.#agentListeners.add(listener);
            return () => this.#agentListeners.delete(listener);
          },
        },
      },
      on: (name, handler, options = {}) => {
        if (!HOOKS.includes(name)) throw new Error(`unknown hook ${name}`);
        if (NEEDS_CONVERSATION.has(name) && entry.hooks?.allowConversationAccess !== true) {
          violation("a hook on conversations needs hooks.allowConversationAccess", { hook: name });
          return;
        }
        const handlers = registry.hooks.get(name) ?? [];
        handlers.push({ handler, priority: options.priority ?? 0, matcher: options.matcher });
        handlers.sort((left, right) => right.priority - left.priority);
        registry.hooks.set(name, handlers);
      },
      registerService: (service) => registry.services.push(service),
      registerChannel: ({ plugin }) => registry.channels.push(plugin),
      registerHttpRoute: (route) => {
        if (!["plugin", "gateway"].includes(route.auth)) throw new Error("a route says who authenticates: plugin or gateway");
        registry.routes.push(route);
      },
    };
  }
}

async function first(registry, name, event, ctx) {
  for (const { handler, matcher } of registry.hooks.get(name) ?? []) {
    if (matcher && !matcher.includes(event.toolName)) continue;
    const answer = await handler(event, ctx);
    if (answer) return answer;
  }
  return null;
}

/** What is wrong with `value` by the small part of JSON Schema that plugin manifests use, or null. */
export function check(schema, value, where) {
  if (schema.enum && !schema.enum.includes(value)) return `${where}: must be one of ${schema.enum.join(", ")}`;
  if (schema.type === "string") {
    if (typeof value !== "string") return `${where}: must be a string`;
    if (value.length < (schema.minLength ?? 0) || value.length > (schema.maxLength ?? Infinity)) return `${where}: has a wrong length`;
    if (schema.pattern && !new RegExp(schema.pattern, "u").test(value)) return `${where}: does not match ${schema.pattern}`;
  }
  if (schema.type === "integer") {
    if (!Number.isInteger(value)) return `${where}: must be an integer`;
    if (value < (schema.minimum ?? -Infinity) || value > (schema.maximum ?? Infinity)) return `${where}: is out of range`;
  }
  if (schema.type !== "object") return null;
  for (const name of schema.required ?? []) if (!(name in value)) return `${where}.${name}: is missing`;
  for (const [name, item] of Object.entries(value)) {
    const known = schema.properties?.[name];
    if (!known && schema.additionalProperties === false) return `${where}: unknown key ${name}`;
    const problem = known && check(known, item, `${where}.${name}`);
    if (problem) return problem;
  }
  return null;
}
