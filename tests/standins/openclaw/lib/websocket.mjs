/** The server's side of a WebSocket (RFC 6455), as far as the Gateway protocol needs it: text, ping, close. */
import { createHash } from "node:crypto";
import { EventEmitter } from "node:events";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const MAX_MESSAGE = 25 * 1024 * 1024;
const TEXT = 1, CLOSE = 8, PING = 9, PONG = 10;

/** Accept an upgrade; gives a socket that emits `message` (text) and `close`, or null when the request is none. */
export function accept(request, socket, head) {
  const key = request.headers["sec-websocket-key"];
  if (request.headers.upgrade?.toLowerCase() !== "websocket" || !key || request.headers["sec-websocket-version"] !== "13") {
    socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    return null;
  }
  const proof = createHash("sha1").update(key + GUID).digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${proof}\r\n\r\n`);
  const peer = new Peer(socket);
  if (head.length) peer.feed(head);
  return peer;
}

class Peer extends EventEmitter {
  #socket;
  #buffer = Buffer.alloc(0);
  #parts = [];
  #closed = false;

  constructor(socket) {
    super();
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on("data", (chunk) => this.feed(chunk));
    socket.on("error", () => this.#end());
    socket.on("close", () => this.#end());
  }

  get remoteAddress() {
    return this.#socket.remoteAddress ?? "";
  }

  send(text) {
    if (!this.#closed) this.#socket.write(frame(TEXT, Buffer.from(text)));
  }

  close(code, reason = "") {
    if (this.#closed) return;
    const body = Buffer.alloc(2 + Buffer.byteLength(reason));
    body.writeUInt16BE(code);
    body.write(reason, 2);
    this.#socket.end(frame(CLOSE, body));
    this.#end();
  }

  feed(chunk) {
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    for (;;) {
      const found = unframe(this.#buffer);
      if (!found) return;
      if (found.error) return this.close(1002, found.error);
      this.#buffer = this.#buffer.subarray(found.length);
      if (found.opcode === CLOSE) return this.close(1000);
      if (found.opcode === PING) this.#socket.write(frame(PONG, found.body));
      else if (found.opcode < CLOSE) {
        this.#parts.push(found.body);
        if (found.final) this.emit("message", Buffer.concat(this.#parts.splice(0)).toString("utf8"));
      }
    }
  }

  #end() {
    if (this.#closed) return;
    this.#closed = true;
    this.emit("close");
  }
}

function frame(opcode, body) {
  const size = body.length;
  const head = Buffer.alloc(size < 126 ? 2 : size < 65536 ? 4 : 10);
  head[0] = 0x80 | opcode;
  if (size < 126) head[1] = size;
  else if (size < 65536) {
    head[1] = 126;
    head.writeUInt16BE(size, 2);
  } else {
    head[1] = 127;
    head.writeBigUInt64BE(BigInt(size), 2);
  }
  return Buffer.concat([head, body]);
}

function unframe(buffer) {
  if (buffer.length < 2) return null;
  if (!(buffer[1] & 0x80)) return { error: "a client masks its frames" };
  let size = buffer[1] & 0x7f;
  let at = 2;
  if (size === 126) {
    if (buffer.length < 4) return null;
    size = buffer.readUInt16BE(2);
    at = 4;
  } else if (size === 127) {
    if (buffer.length < 10) return null;
    size = Number(buffer.readBigUInt64BE(2));
    at = 10;
  }
  if (size > MAX_MESSAGE) return { error: "too long" };
  if (buffer.length < at + 4 + size) return null;
  const mask = buffer.subarray(at, at + 4);
  const body = Buffer.from(buffer.subarray(at + 4, at + 4 + size));
  for (let index = 0; index < size; index += 1) body[index] ^= mask[index & 3];
  return { opcode: buffer[0] & 0x0f, final: Boolean(buffer[0] & 0x80), body, length: at + 4 + size };
}
