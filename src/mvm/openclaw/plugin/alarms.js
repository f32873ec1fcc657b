/**
 * The next moment at which this OpenClaw has something of the person's own to do: their cron jobs and reminders.
 */

/** True for jobs that OpenClaw keeps for itself; nobody is woken at night for those. */
export function isHousekeeping(job) {
  return job?.payload?.kind === "heartbeat" || typeof job?.declarationKey === "string";
}

/** Earliest next run in epoch milliseconds over the person's own enabled jobs, or null. */
export function nextAlarm(jobs) {
  const times = jobs
    .filter((job) => job.enabled !== false && !isHousekeeping(job))
    .map((job) => job.state?.nextRunAtMs)
    .filter((time) => Number.isFinite(time));
  return times.length ? Math.min(...times) : null;
}

/** Keep `activity.nextAlarmAt` at what the scheduler says. */
export function watchAlarms({ api, activity, log }) {
  let cron = null;
  const reread = async () => {
    try {
      activity.nextAlarmAt = cron ? nextAlarm(await cron.list({ includeDisabled: false })) : null;
    } catch (error) {
      log.warn(`the scheduler could not be read: ${error?.message ?? error}`);
    }
  };
  api.on("cron_reconciled", (event, ctx) => {
    cron = event.enabled ? (ctx.getCron?.() ?? null) : null;
    return reread();
  });
  api.on("cron_changed", () => reread());
}
