/** The agent of a worker: turns with the configured model and one tool, `automations`. */
import { ask } from "./model.mjs";

const ROUNDS = 8;
const AUTOMATIONS = {
  name: "automations",
  description: "Schedule jobs. Actions: add (job), list, remove (jobId).",
  input_schema: {
    type: "object",
    required: ["action"],
    properties: { action: { type: "string", enum: ["add", "list", "remove"] }, job: { type: "object" }, jobId: { type: "string" } },
  },
};

export class Agent {
  #config;
  #plugins;
  #cron;

  constructor({ config, plugins }) {
    this.#config = config;
    this.#plugins = plugins;
  }

  use(cron) {
    this.#cron = cron;
  }

  /** The model as the configuration names it, with its key; throws when that is wrong. */
  model() {
    const { agents, models } = this.#config.current();
    const [name, ...rest] = String(agents?.defaults?.model?.primary ?? "").split("/");
    const provider = models?.providers?.[name];
    if (!provider?.baseUrl) throw new Error(`No base URL for provider "${name}": the stand-in asks no real one`);
    return { baseUrl: provider.baseUrl, apiKey: this.#config.secret(provider.apiKey, `models.providers.${name}.apiKey`), id: rest.join("/") };
  }

  /** Run a turn on a conversation that ends with a person's message; gives the final text. */
  async turn({ messages, sessionKey, signal, onText }) {
    const blocked = await this.#plugins.askInTurn("before_agent_run", { sessionKey });
    if (blocked?.block) throw new Error(blocked.reason ?? "blocked");
    const { baseUrl, apiKey, id } = this.model();
    const conversation = this.#prepared(messages);
    for (let round = 0; round < ROUNDS; round += 1) {
      const { content, stopReason } = await ask({
        baseUrl,
        apiKey,
        signal,
        onText,
        body: {
          model: id,
          max_tokens: 4096,
          system: [{ type: "text", text: `You are a stand-in for OpenClaw. Session ${sessionKey}. Workspace ${this.#config.current().agents?.defaults?.workspace}.` }],
          tools: [AUTOMATIONS],
          messages: conversation,
        },
      });
      const said = content.filter((block) => block.type === "text").map((block) => block.text).join("");
      if (stopReason !== "tool_use") return said;
      const results = [];
      for (const use of content.filter((block) => block.type === "tool_use")) results.push(await this.#tool(use));
      conversation.push({ role: "assistant", content }, { role: "user", content: results });
    }
    throw new Error("too many tool calls");
  }

  /** Consecutive messages of one role belong together, empty ones are left out, and OpenClaw adds context of its own. */
  #prepared(messages) {
    const prepared = [];
    for (const { role, content } of messages) {
      const blocks = content.filter((block) => block.type !== "text" || block.text.trim());
      if (!blocks.length) continue;
      if (prepared.at(-1)?.role === role) prepared.at(-1).content.push(...blocks);
      else prepared.push({ role, content: [...blocks] });
    }
    const stamp = new Date().toISOString().slice(0, 16).replace("T", " ");
    const last = prepared.at(-1).content.findLast((block) => block.type === "text");
    if (last && !last.text.startsWith("[cron:")) prepared.at(-1).content[prepared.at(-1).content.indexOf(last)] = { ...last, text: `[${stamp} UTC] ${last.text}` };
    prepared.push({ role: "user", content: [{ type: "text", text: "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nActive exec sessions: none\n<<<END_OPENCLAW_INTERNAL_CONTEXT>>>" }] });
    return prepared;
  }

  async #tool({ id, name, input }) {
    let result;
    try {
      if (name !== AUTOMATIONS.name) throw new Error(`Unknown tool ${name}`);
      input = (await this.#plugins.askInTurn("before_tool_call", { toolName: name, params: input }))?.params ?? input;
      if (input.action === "add") result = { ok: true, job: await this.#cron.add(input.job ?? {}) };
      else if (input.action === "list") result = { jobs: await this.#cron.list() };
      else result = await this.#cron.remove(input.jobId);
    } catch (error) {
      return { type: "tool_result", tool_use_id: id, is_error: true, content: JSON.stringify({ status: "error", error: error.message }) };
    }
    return { type: "tool_result", tool_use_id: id, content: JSON.stringify(result) };
  }
}
