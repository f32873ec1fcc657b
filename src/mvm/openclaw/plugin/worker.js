/** Role worker: see when this OpenClaw is busy and when it has to be awake. */
import { watchAlarms } from "./alarms.js";

export function registerWorker({ api, activity, log }) {
  if (api.registrationMode !== "full") return;
  api.runtime.events.onAgentEvent((event) => {
    if (event.stream !== "lifecycle") return;
    if (event.data?.phase === "start") activity.begin(event.runId, "turn");
    else if (["end", "error"].includes(event.data?.phase)) activity.end(event.runId);
  });
  watchAlarms({ api, activity, log });
}
