/** What must survive a kill: files written whole, and logs that only grow. */
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { dirname } from "node:path";

/** Replace a file by the JSON of `value`; a reader sees the old or the new one. */
export function writeWhole(path, value) {
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.new`;
  const handle = openSync(temporary, "w", 0o600);
  writeSync(handle, JSON.stringify(value));
  fsyncSync(handle);
  closeSync(handle);
  renameSync(temporary, path);
}

export function readWhole(path, otherwise) {
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : otherwise;
}

/** Lines of JSON that are on the disk when `append` returns. A torn last line is ignored. */
export class Log {
  #path;
  #handle = null;

  constructor(path) {
    this.#path = path;
  }

  read() {
    if (!existsSync(this.#path)) return [];
    const records = [];
    for (const line of readFileSync(this.#path, "utf8").split("\n")) {
      try {
        if (line) records.push(JSON.parse(line));
      } catch {
        // cut off by a kill while it was written
      }
    }
    return records;
  }

  append(record) {
    if (this.#handle === null) {
      mkdirSync(dirname(this.#path), { recursive: true });
      this.#handle = openSync(this.#path, "a", 0o600);
      writeSync(this.#handle, "\n");
    }
    writeSync(this.#handle, `${JSON.stringify(record)}\n`);
    fsyncSync(this.#handle);
  }

  /** Forget everything. */
  clear() {
    if (this.#handle !== null) closeSync(this.#handle);
    this.#handle = null;
    writeWhole(this.#path, {});
    const handle = openSync(this.#path, "w", 0o600);
    closeSync(handle);
  }
}
