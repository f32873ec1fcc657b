/**
 * The control socket: one request per line, one JSON line as its answer. Reachable for whoever may open the file.
 */
import { createServer } from "node:net";
import { chmod, unlink } from "node:fs/promises";
import { cut } from "./message.js";

const MAX_LINE = 1024;
const MAX_CONNECTIONS = 16;
const REQUEST_TIMEOUT_MS = 330_000;
const DEFAULT_DRAIN_SECONDS = 30;
const MAX_DRAIN_SECONDS = 300;

export class ControlSocket {
  #path;
  #commands;
  #activity;
  #log;
  #server = null;
  #limits;
  #sockets = new Set();

  /**
   * `commands` maps a name to `async (argument) => object`, `limits` some of them to the milliseconds they may take;
   * STATUS and SUBSCRIBE are answered from `status()`.
   */
  constructor({ path, commands, limits = {}, activity, status, log }) {
    this.#limits = limits;
    this.#path = path;
    this.#activity = activity;
    this.#log = log;
    this.#commands = { STATUS: async () => status(), ...commands };
    this.status = status;
  }

  async listen() {
    await unlink(this.#path).catch((error) => {
      if (error.code !== "ENOENT") throw error;
    });
    const server = createServer((socket) => this.#serve(socket));
    server.maxConnections = MAX_CONNECTIONS;
    await new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.#path, resolve);
    });
    await chmod(this.#path, 0o600);
    server.unref();
    this.#server = server;
  }

  async close() {
    for (const socket of this.#sockets) socket.destroy();
    const server = this.#server;
    this.#server = null;
    if (server) await new Promise((resolve) => server.close(resolve));
  }

  #serve(socket) {
    this.#sockets.add(socket);
    let pending = "";
    let work = Promise.resolve();
    socket.setEncoding("utf8");
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("data", (text) => {
      pending += text;
      for (let end; (end = pending.indexOf("\n")) >= 0; ) {
        const line = pending.slice(0, end).trim();
        pending = pending.slice(end + 1);
        if (line) work = work.then(() => this.#answer(socket, line));
      }
      if (pending.length > MAX_LINE) socket.end(render({ ok: false, detail: "the line is too long" }));
    });
  }

  async #answer(socket, line) {
    if (line.length > MAX_LINE) return void socket.end(render({ ok: false, detail: "the line is too long" }));
    const [name, argument = ""] = line.split(/\s+/, 2);
    if (name === "SUBSCRIBE") return this.#subscribe(socket);
    const command = Object.hasOwn(this.#commands, name) ? this.#commands[name] : null;
    if (!command) return void write(socket, { ok: false, detail: `unknown request ${JSON.stringify(name.slice(0, 40))}` });
    let timer;
    const limit = new Promise((resolve) => {
      timer = setTimeout(() => resolve({ ok: false, detail: "no answer in time" }), this.#limits[name] ?? REQUEST_TIMEOUT_MS);
    });
    try {
      write(socket, await Promise.race([command(argument), limit]));
    } catch (error) {
      this.#log.warn(`${name} failed: ${error?.message ?? error}`);
      write(socket, { ok: false, detail: cut(error?.message ?? error, 300) });
    } finally {
      clearTimeout(timer);
    }
  }

  #subscribe(socket) {
    let before = "";
    const tell = () => {
      const line = render(this.status());
      if (line === before || socket.writableLength > 64 * 1024) return;
      before = line;
      socket.write(line);
    };
    tell();
    const stop = this.#activity.subscribe(tell);
    socket.once("close", stop);
  }
}

/** Seconds to drain for, from the request's argument. */
export function drainSeconds(argument) {
  if (argument === "") return DEFAULT_DRAIN_SECONDS;
  const seconds = Number(argument);
  if (!Number.isFinite(seconds) || seconds < 0) throw new Error(`${JSON.stringify(argument.slice(0, 40))} is no number of seconds`);
  return Math.min(seconds, MAX_DRAIN_SECONDS);
}

const render = (value) => `${JSON.stringify(value)}\n`;

function write(socket, value) {
  if (socket.writable) socket.write(render(value));
}
