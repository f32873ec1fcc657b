/** `openclaw.json`: read strictly, with its secrets, and read again when it changes. */
import { readFileSync, statSync } from "node:fs";

const TOP = [
  "agents", "attachments", "browser", "channels", "commands", "cron", "diagnostics", "discovery", "env", "gateway", "hooks", "logging", "messages", "meta",
  "models", "plugins", "secrets", "session", "skills", "tools", "ui", "update",
];
const GATEWAY = ["auth", "bind", "controlUi", "http", "mode", "port", "reload"];
const TELEGRAM = [
  "allowFrom", "apiRoot", "botToken", "configWrites", "dmPolicy", "enabled", "groupPolicy", "mediaMaxMb", "network", "streaming", "tokenFile",
];
const POLL_MS = 100;

/** The configuration is wrong: OpenClaw ends with status 78. */
export class ConfigProblem extends Error {}

export class Config {
  #path;
  #value;
  #stamp;
  #secrets = null;
  #timer = null;

  constructor(path) {
    this.#path = path;
    this.#stamp = stamp(path);
    this.#value = load(path);
  }

  current() {
    return this.#value;
  }

  /** The value behind a SecretRef or `${VAR}`; `ConfigProblem` when there is none. */
  secret(ref, what) {
    if (typeof ref === "string") {
      return ref.replace(/\$\{([A-Z0-9_]+)\}/g, (_, name) => {
        if (!process.env[name]) throw new ConfigProblem(`${what}: the variable ${name} is not set`);
        return process.env[name];
      });
    }
    const provider = this.#value.secrets?.providers?.[ref?.provider];
    if (ref?.source !== "file" || provider?.source !== "file" || provider.mode !== "json") {
      throw new ConfigProblem(`${what}: only file SecretRefs of a JSON provider are known here`);
    }
    if (!/^\/[^/]+$/.test(ref.id)) throw new ConfigProblem(`${what}: the id of a file SecretRef is a JSON pointer`);
    this.#secrets ??= JSON.parse(readFileSync(provider.path, "utf8"));
    const value = this.#secrets[ref.id.slice(1)];
    if (typeof value !== "string" || value === "") throw new ConfigProblem(`${what}: ${provider.path} has no ${ref.id}`);
    return value;
  }

  /** Read the secrets' file again at the next use; all must still be there. */
  reloadSecrets() {
    const before = this.#secrets;
    this.#secrets = null;
    try {
      for (const [what, ref] of this.refs()) this.secret(ref, what);
    } catch (error) {
      this.#secrets = before; // OpenClaw keeps the last good snapshot
      throw error;
    }
  }

  /** Every SecretRef in use, by its place. */
  refs() {
    const config = this.#value;
    const found = [["gateway.auth.token", config.gateway.auth.token]];
    if (config.channels?.telegram) found.push(["channels.telegram.botToken", config.channels.telegram.botToken]);
    for (const [name, provider] of Object.entries(config.models?.providers ?? {})) {
      if (provider.apiKey !== undefined) found.push([`models.providers.${name}.apiKey`, provider.apiKey]);
    }
    return found;
  }

  /** Call `changed(before, after)` when the file has changed and is right; a wrong one is told to `wrong` and not taken. */
  watch({ changed, wrong }) {
    this.#timer = setInterval(() => {
      let now;
      try {
        now = stamp(this.#path);
        if (now === this.#stamp) return;
        this.#stamp = now;
        const before = this.#value;
        this.#value = load(this.#path);
        changed(before, this.#value);
      } catch (error) {
        wrong(error);
      }
    }, POLL_MS);
    this.#timer.unref();
  }
}

function stamp(path) {
  const { mtimeMs, ino, size } = statSync(path);
  return `${mtimeMs}:${ino}:${size}`;
}

function load(path) {
  let value;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new ConfigProblem(`${path}: ${error.message}`);
  }
  known(value, TOP, "");
  known(value.gateway ?? {}, GATEWAY, "gateway.");
  if (value.gateway?.mode !== "local") throw new ConfigProblem('gateway.mode must be "local"');
  if (value.gateway.bind !== "loopback") throw new ConfigProblem('gateway.bind: the stand-in binds to "loopback" only');
  if (!Number.isInteger(value.gateway.port)) throw new ConfigProblem("gateway.port must be a number");
  if (value.gateway.auth?.mode !== "token") throw new ConfigProblem("gateway.auth.mode must be token");
  if (value.channels?.telegram) telegram(value.channels.telegram);
  return value;
}

function telegram(channel) {
  known(channel, TELEGRAM, "channels.telegram.");
  if (channel.dmPolicy === "open" && !channel.allowFrom?.includes("*")) {
    throw new ConfigProblem('channels.telegram.dmPolicy="open" requires channels.telegram.allowFrom to include "*"');
  }
  if (!["open", "allowlist", "disabled", "pairing"].includes(channel.dmPolicy ?? "pairing")) throw new ConfigProblem("channels.telegram.dmPolicy is unknown");
}

function known(value, names, prefix) {
  const unknown = Object.keys(value).filter((name) => !names.includes(name));
  if (unknown.length) throw new ConfigProblem(`unrecognized key: ${prefix}${unknown[0]}`);
}
