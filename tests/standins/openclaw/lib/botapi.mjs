/** Calls of the Telegram Bot API. */

const TIMEOUT_MS = 20_000;
const MAX_RETRY_AFTER_SECONDS = 60;
const PATIENT_TRIES = 3;

/** `ok: false`, with its code and what it asks for. */
export class BotApiProblem extends Error {
  constructor(method, { error_code: code, description, parameters }) {
    super(`Call to '${method}' failed! (${code}: ${description})`);
    this.code = this.error_code = code;
    this.retryAfter = parameters?.retry_after ?? null;
  }
}

export class BotApi {
  #root;
  #token;

  constructor(root, token) {
    this.#root = root.replace(/\/$/, "");
    this.#token = token;
  }

  async call(method, params = {}, { signal, timeoutMs = TIMEOUT_MS } = {}) {
    const response = await fetch(`${this.#root}/bot${this.#token}/${method}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(params),
      signal: AbortSignal.any([AbortSignal.timeout(timeoutMs), ...(signal ? [signal] : [])]),
    });
    const answer = await response.json();
    if (!answer.ok) throw new BotApiProblem(method, answer);
    return answer.result;
  }

  /** As `call`, waiting as long as flood control asks for, a few times. */
  async patiently(method, params) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.call(method, params);
      } catch (error) {
        if (tries >= PATIENT_TRIES || error.code !== 429 || !(error.retryAfter <= MAX_RETRY_AFTER_SECONDS)) throw error;
        await new Promise((resolve) => setTimeout(resolve, error.retryAfter * 1000));
      }
    }
  }

  async download(fileId) {
    const { file_path: path } = await this.call("getFile", { file_id: fileId });
    const response = await fetch(`${this.#root}/file/bot${this.#token}/${path}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) throw new Error(`the file could not be downloaded: ${response.status}`);
    return { path, data: Buffer.from(await response.arrayBuffer()) };
  }
}
