/** Asks a model over the Anthropic Messages API, streamed, with the retries of its SDK. */

const RETRIES = 2;
const RETRY_STATUS = new Set([408, 409, 429, 500, 502, 503, 504, 529]);
const RETRY_MS = 300;

/** The provider refused, or did not answer. */
export class ModelProblem extends Error {}

/** One request; gives `{content, stopReason}` and calls `onText(text so far)` while it streams. */
export async function ask({ baseUrl, apiKey, body, signal, onText }) {
  for (let attempt = 0; ; attempt += 1) {
    let problem;
    try {
      const response = await fetch(`${baseUrl}/v1/messages`, {
        method: "POST",
        signal,
        headers: { "content-type": "application/json", "x-api-key": apiKey, "anthropic-version": "2023-06-01" },
        body: JSON.stringify({ ...body, stream: true }),
      });
      if (response.ok) return await read(response, onText);
      const told = await response.json().catch(() => null);
      problem = new ModelProblem(`HTTP ${response.status} ${told?.error?.type ?? "error"}: ${told?.error?.message ?? response.statusText}`);
      if (!RETRY_STATUS.has(response.status)) throw problem;
    } catch (error) {
      if (signal?.aborted) throw signal.reason ?? error;
      if (error instanceof ModelProblem && !problem) throw error;
      problem ??= new ModelProblem(`the model provider does not answer: ${error?.cause?.code ?? error.message}`);
      if (problem.message.startsWith("HTTP") && !/HTTP (408|409|429|5\d\d)/.test(problem.message)) throw problem;
    }
    if (attempt >= RETRIES) throw problem;
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS * 2 ** attempt));
  }
}

async function read(response, onText) {
  const content = [];
  let stopReason = null;
  let ended = false;
  let pending = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body) {
    pending += decoder.decode(chunk, { stream: true });
    for (let end; (end = pending.indexOf("\n\n")) >= 0; ) {
      const data = /^data: (.*)$/m.exec(pending.slice(0, end))?.[1];
      pending = pending.slice(end + 2);
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.type === "error") throw new ModelProblem(`${event.error.type}: ${event.error.message}`);
      if (event.type === "content_block_start") content[event.index] = { ...event.content_block, json: "" };
      else if (event.type === "content_block_delta") {
        const block = content[event.index];
        if (event.delta.type === "text_delta") {
          block.text += event.delta.text;
          onText?.(content.filter((item) => item.type === "text").map((item) => item.text).join(""));
        } else if (event.delta.type === "input_json_delta") block.json += event.delta.partial_json;
      } else if (event.type === "message_delta") stopReason = event.delta.stop_reason;
      else if (event.type === "message_stop") ended = true;
    }
  }
  if (!ended) throw new Error("the stream broke off");
  return {
    stopReason,
    content: content.map(({ json, ...block }) => (block.type === "tool_use" ? { ...block, input: JSON.parse(json || "{}") } : block)),
  };
}
