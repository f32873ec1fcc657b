/** Counts starts that no orderly end followed: three within five minutes keep the channels from starting by themselves. */
import { join } from "node:path";
import { readWhole, writeWhole } from "./disk.mjs";

const WINDOW_MS = 5 * 60_000;
const LIMIT = 3;

export class Boots {
  #path;
  #starts;

  constructor(directory) {
    this.#path = join(directory, "boots.json");
    this.#starts = readWhole(this.#path, []).filter((start) => start.at > Date.now() - WINDOW_MS);
  }

  /** Note this start; true when too many before it ended uncleanly. */
  begin() {
    const tripped = this.#starts.filter((start) => !start.clean).length >= LIMIT;
    this.#starts.push({ at: Date.now(), clean: false });
    writeWhole(this.#path, this.#starts);
    return tripped;
  }

  /** This process ends in order. */
  end() {
    this.#starts.at(-1).clean = true;
    writeWhole(this.#path, this.#starts);
  }
}
