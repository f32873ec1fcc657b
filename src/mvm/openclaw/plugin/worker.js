/** Role worker: the way out for what nobody asked, and when this OpenClaw is busy or has to be awake. */
import { outboxChannel } from "./channel.js";
import { SCHEDULER_TOOL, settleDelivery } from "./reminders.js";

/** The channel is wanted by every way of loading the plugin: OpenClaw looks at channels before it starts anything. */
export function registerChannel({ api, config }) {
  api.registerChannel({ plugin: outboxChannel({ outboxUrl: config.outboxUrl, outboxTokenFile: config.outboxTokenFile }) });
}

export function registerWorkerHooks({ api, state }) {
  api.on(
    "before_tool_call",
    (event) => {
      const params = settleDelivery(event.params);
      return params ? { params } : undefined;
    },
    { matcher: [SCHEDULER_TOOL] },
  );
  const cancelled = (yes) => (yes ? { cancel: true } : undefined);
  api.on("before_agent_run", (event, ctx) => state.recovery.begins(ctx));
  api.on("reply_payload_sending", (event, ctx) => cancelled(state.recovery.isAnswer(ctx)));
  api.on("message_sending", (event, ctx) => cancelled(state.recovery.isNotice(event, ctx)));
  api.on("cron_reconciled", (event, ctx) => state.alarms.adopt(event.enabled ? ctx.getCron : undefined));
  api.on("cron_changed", (event) => {
    // A job is under way until its result is delivered, not only while the model speaks.
    if (event.action === "started") state.activity.begin(`cron:${event.jobId}`, "job");
    else if (["finished", "removed"].includes(event.action)) state.activity.end(`cron:${event.jobId}`);
    return state.alarms.reread();
  });
}

/** Count the agent's turns, whoever asked for them: the person, a reminder, the agent itself. */
export function watchTurns({ api, state }) {
  state.stopWatching?.();
  state.stopWatching = api.runtime.events.onAgentEvent((event) => {
    if (event.stream !== "lifecycle") return;
    if (event.data?.phase === "start") {
      state.activity.begin(event.runId, "turn");
      state.log.info(`trace ${event.runId}: the turn begins`);
    } else if (["end", "error"].includes(event.data?.phase)) {
      state.activity.end(event.runId);
      state.log.info(`trace ${event.runId}: the turn is over (${event.data.phase})`);
    }
  });
}
