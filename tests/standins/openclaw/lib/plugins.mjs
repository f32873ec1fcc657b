/** Loads plugins as OpenClaw does and gives them the part of its API that mvm's plugin may use. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { ConfigProblem } from "./config.mjs";
import { violation } from "./stages.mjs";

const HOOKS = ["reply_dispatch", "before_agent_run", "gateway_start", "gateway_stop", "cron_reconciled", "cron_changed", "message_received", "before_agent_reply"];
const NEEDS_CONVERSATION = new Set(["reply_dispatch", "before_agent_run", "before_agent_reply"]);

export class Plugins {
  #config;
  #log;
  #hooks = new Map();
  #services = [];
  #routes = [];
  #channels = [];
  #agentListeners = new Set();

  constructor({ config, log }) {
    this.#config = config;
    this.#log = log;
  }

  get channels() {
    return this.#channels;
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
        module.default.register(this.#api(manifest.id, entry ?? {}));
      }
    }
  }

  /** Ask the handlers of a hook in the order of their priority; the first that gives something decides. */
  async ask(name, event, ctx) {
    for (const { handler } of this.#hooks.get(name) ?? []) {
      const answer = await handler(event, ctx);
      if (answer) return answer;
    }
    return null;
  }

  /** Tell every handler of a hook; a failing one is logged. */
  async tell(name, event, ctx = {}) {
    for (const { handler } of this.#hooks.get(name) ?? []) {
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

  async start() {
    for (const service of this.#services) await service.start({});
  }

  async stop() {
    for (const service of this.#services) await service.stop?.({});
  }

  /** The handler for an HTTP path, or null. */
  route(path) {
    const found = this.#routes.find((route) => (route.match === "prefix" ? path.startsWith(route.path) : path === route.path));
    return found?.handler ?? null;
  }

  #api(id, entry) {
    const config = this.#config;
    const log = (level) => (text) => this.#log(`[plugins] ${level}: ${text}`);
    return {
      id,
      registrationMode: "full",
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
        const handlers = this.#hooks.get(name) ?? [];
        handlers.push({ handler, priority: options.priority ?? 0 });
        handlers.sort((left, right) => right.priority - left.priority);
        this.#hooks.set(name, handlers);
      },
      registerService: (service) => this.#services.push(service),
      registerChannel: ({ plugin }) => this.#channels.push(plugin),
      registerHttpRoute: (route) => {
        if (!["plugin", "gateway"].includes(route.auth)) throw new Error("a route says who authenticates: plugin or gateway");
        this.#routes.push(route);
      },
    };
  }
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
