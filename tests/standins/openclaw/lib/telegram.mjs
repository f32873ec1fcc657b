/** The Telegram channel: long polling into a durable queue, one dispatch at a time per chat, answers through the Bot API. */
import { mkdirSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { BotApi } from "./botapi.mjs";
import { Log } from "./disk.mjs";
import { reach, violation } from "./stages.mjs";

const POLL_SECONDS = 30;
const HANDLER_TIMEOUT_MS = 300_000;
const BACKOFF_MS = [200, 500, 1000, 2000, 5000];
const CHUNK = 4000;
const ALLOWED_UPDATES = ["message", "edited_message", "callback_query", "message_reaction"];

export class Telegram {
  #config;
  #directory;
  #plugins;
  #log;
  #spool;
  #pending = new Map();
  #seen = new Set();
  #offset = null;
  #lanes = new Map();
  #active = new Map();
  #api = null;
  #settings = null;
  #polling = null;
  #state = "stopped";

  constructor({ config, directory, plugins, log }) {
    this.#config = config;
    this.#directory = directory;
    this.#plugins = plugins;
    this.#log = (text) => log(`[telegram] ${text}`);
    this.#spool = new Log(join(directory, "telegram/ingress.jsonl"));
    for (const record of this.#spool.read()) {
      if (record.put) {
        this.#pending.set(record.put.update_id, record.put);
        this.#seen.add(identity(record.put));
        this.#offset = Math.max(this.#offset ?? 0, record.put.update_id + 1);
      } else if (record.done) this.#pending.delete(record.done);
    }
  }

  get state() {
    return this.#state;
  }

  get running() {
    return this.#active.size;
  }

  /** Begin to poll; what was spooled before a kill is dispatched first. */
  start() {
    const settings = this.#config.current().channels.telegram;
    if (!settings.enabled || this.#polling) return;
    this.#settings = settings;
    this.#api = new BotApi(settings.apiRoot ?? "https://api.telegram.org", this.#config.secret(settings.botToken, "channels.telegram.botToken"));
    const controller = new AbortController();
    this.#polling = controller;
    this.#state = "starting";
    for (const update of this.#pending.values()) this.#enqueue(update);
    void this.#poll(this.#api, controller.signal);
  }

  stop() {
    this.#polling?.abort();
    this.#polling = null;
    this.#state = "stopped";
  }

  /** Stop polling, wait for the dispatches, then end them: the queue keeps what is not done. */
  async shutdown(graceMs) {
    this.stop();
    const deadline = Date.now() + graceMs;
    while (this.#active.size && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 20));
    for (const { controller } of this.#active.values()) controller.abort(new Error("gateway restarting"));
  }

  /** Send one text; long ones in several messages, each of which is told to `onSent`. */
  async send({ to, text, onSent = () => {} }) {
    const chat = String(to).replace(/^telegram:/, "");
    if (!/^-?\d+$/.test(chat)) throw new Error(`Telegram target is no chat id: ${to}`);
    for (let at = 0; at < text.length; at += CHUNK) {
      const sent = await this.#api.patiently("sendMessage", { chat_id: chat, text: text.slice(at, at + CHUNK) }).catch((error) => {
        // OpenClaw puts its own words in the place of this error: the code is lost.
        if (error.code !== 403) throw error;
        throw new Error(`Telegram send failed: bot is not a member of the chat, was blocked, or was kicked (chat_id=${chat}). Telegram API said: ${error.message}.`);
      });
      onSent({ channel: "telegram", messageId: String(sent.message_id), chatId: chat });
    }
  }

  async #poll(api, signal) {
    for (let failures = 0; !signal.aborted; ) {
      try {
        if (this.#state !== "running") {
          const me = await api.call("getMe", {}, { signal });
          this.#log(`[default] starting provider (@${me.username})`);
          await api.call("deleteWebhook", { drop_pending_updates: false }, { signal });
          await api.call("deleteMyCommands", {}, { signal });
        }
        const updates = await api.call(
          "getUpdates",
          { timeout: this.#state === "running" ? POLL_SECONDS : 0, limit: 100, allowed_updates: ALLOWED_UPDATES, ...(this.#offset === null ? {} : { offset: this.#offset }) },
          { signal, timeoutMs: (POLL_SECONDS + 15) * 1000 },
        );
        this.#state = "running";
        failures = 0;
        for (const update of updates) this.#take(update);
      } catch (error) {
        if (signal.aborted) return;
        this.#log(`polling failed: ${error.message}`);
        if (error.code === 401 || error.code === 404) {
          const polled = this.#state === "running";
          const why = `Telegram bot token unauthorized for account "default" (getMe returned ${error.code} from Telegram; source: config token).`;
          this.#log(`[default] channel exited: ${polled ? "Unauthorized | Telegram ingress worker exited with code 1" : why}`);
          this.#log("[default] auto-restart skipped, terminal disconnect");
          this.#state = "unauthorized";
          this.#polling = null;
          return;
        }
        await pause(BACKOFF_MS[Math.min(failures, BACKOFF_MS.length - 1)], signal);
        failures += 1;
      }
    }
  }

  #take(update) {
    this.#offset = Math.max(this.#offset ?? 0, update.update_id + 1);
    if (this.#seen.has(identity(update))) return;
    this.#seen.add(identity(update));
    this.#spool.append({ put: update });
    reach("update-spooled");
    this.#pending.set(update.update_id, update);
    this.#enqueue(update);
  }

  #enqueue(update) {
    const chat = chatOf(update);
    const active = this.#active.get(chat);
    if (/^\/stop(@\w+)?$/i.test(update.message?.text?.trim() ?? "")) return void this.#stopTurn(update, active);
    if (active?.controller.signal.aborted) {
      violation("a message that comes while an aborted dispatch lasts is dropped", { update: update.update_id });
      return this.#done(update);
    }
    const before = this.#lanes.get(chat) ?? Promise.resolve();
    const mine = before.then(() => this.#dispatch(update));
    this.#lanes.set(chat, mine);
    void mine.then(() => this.#lanes.get(chat) === mine && this.#lanes.delete(chat));
  }

  async #stopTurn(update, active) {
    active?.controller.abort(new Error("Reply operation aborted by user"));
    await this.send({ to: String(update.message.chat.id), text: "⚙️ Agent was aborted." }).catch((error) => this.#log(error.message));
    this.#done(update);
  }

  async #dispatch(update) {
    const context = await this.#context(update).catch((error) => this.#log(`update ${update.update_id}: ${error.message}`));
    if (!context) return this.#done(update);
    const chat = chatOf(update);
    const limit = Number(process.env.OPENCLAW_TELEGRAM_SPOOLED_HANDLER_TIMEOUT_MS) || HANDLER_TIMEOUT_MS;
    for (;;) {
      const controller = new AbortController();
      this.#active.set(chat, { controller });
      reach("dispatching");
      const outcome = await Promise.race([this.#ask(context, controller.signal), pause(limit).then(() => "late")]);
      this.#active.delete(chat);
      if (outcome === "late") {
        violation("a dispatch lasted longer than the handler's time and came again", { update: update.update_id });
        continue;
      }
      if (controller.signal.reason?.message === "gateway restarting") return;
      break;
    }
    reach("dispatched");
    this.#done(update);
  }

  async #ask(context, signal) {
    const event = { ctx: context, originatingChannel: "telegram", originatingTo: context.OriginatingTo, originatingChatType: context.ChatType, sendPolicy: "allow", images: [] };
    try {
      const answer = await this.#plugins.ask("reply_dispatch", event, {
        abortSignal: signal,
        onReplyStart: () => this.#api.call("sendChatAction", { chat_id: context.OriginatingTo.replace("telegram:", ""), action: "typing" }),
        recordProcessed: () => {},
        markIdle: () => {},
      });
      const counts = answer?.counts;
      const whole = typeof answer?.queuedFinal === "boolean" && ["tool", "block", "final"].every((name) => Number.isInteger(counts?.[name]));
      if (answer?.handled === true && whole) return;
      violation("a dispatch that no plugin claims runs a turn in the gateway", { answer });
    } catch (error) {
      violation("a failing hook lets a turn run in the gateway", { error: String(error?.message ?? error) });
    }
  }

  /** What plugins see of a message; null when it is not for anybody here. */
  async #context(update) {
    const { message, callback_query: pressed } = update;
    const source = message ?? pressed?.message;
    if (!source) return null;
    const sender = String((pressed?.from ?? message.from).id);
    const direct = source.chat.type === "private";
    if (!direct && (this.#settings.groupPolicy ?? "disabled") === "disabled") return null;
    if (this.#settings.dmPolicy !== "open" && !this.#settings.allowFrom?.includes(sender)) return null;
    const text = pressed ? `callback_data: ${pressed.data}` : (message.text ?? message.caption ?? "");
    const media = message?.photo ? [await this.#photo(message.photo.at(-1).file_id)] : [];
    return {
      Provider: "telegram",
      Surface: "telegram",
      AccountId: "default",
      OriginatingChannel: "telegram",
      OriginatingTo: `telegram:${source.chat.id}`,
      From: `telegram:${source.chat.id}`,
      To: `telegram:${source.chat.id}`,
      SenderId: sender,
      SenderName: (pressed?.from ?? message.from).first_name,
      ChatType: direct ? "direct" : "group",
      MessageSid: pressed ? pressed.id : String(message.message_id),
      ProviderUpdateId: update.update_id,
      SessionKey: `agent:main:telegram:direct:${sender}`,
      Body: text,
      RawBody: text,
      CommandBody: text,
      BodyForAgent: text,
      ...(media.length ? { MediaPaths: media.map(({ path }) => path), MediaTypes: media.map(({ type }) => type) } : {}),
    };
  }

  async #photo(fileId) {
    const { path, data } = await this.#api.download(fileId);
    const folder = join(this.#directory, "media/inbound");
    mkdirSync(folder, { recursive: true });
    const file = join(folder, `${Date.now()}-${basename(path)}`);
    writeFileSync(file, data, { mode: 0o600 });
    return { path: file, type: data.subarray(0, 4).toString("latin1") === "\x89PNG" ? "image/png" : "image/jpeg" };
  }

  #done(update) {
    this.#pending.delete(update.update_id);
    this.#spool.append({ done: update.update_id });
  }
}

function chatOf(update) {
  return String((update.message ?? update.callback_query?.message)?.chat.id ?? "none");
}

/** Telegram's own identity of what an update brings: the same message is taken once. */
function identity(update) {
  if (update.message) return `message:${update.message.chat.id}:${update.message.message_id}`;
  return update.callback_query ? `callback:${update.callback_query.id}` : `update:${update.update_id}`;
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
