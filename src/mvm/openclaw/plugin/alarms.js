/**
 * The next moment at which this OpenClaw has something of the person's own to do: their cron jobs and reminders.
 */
const HOUSEKEEPING = /^(heartbeat|skill-collection-review|memory-|dreaming)/;

/** True for jobs that OpenClaw keeps for itself; nobody is woken at night for those. */
export function isHousekeeping(job) {
  return job?.payload?.kind === "heartbeat" || HOUSEKEEPING.test(job?.declarationKey ?? "");
}

/** Earliest next run in epoch milliseconds over the person's own enabled jobs, or null. */
export function nextAlarm(jobs) {
  const times = jobs
    .filter((job) => job.enabled !== false && !isHousekeeping(job))
    .map((job) => job.state?.nextRunAtMs)
    .filter((time) => Number.isFinite(time));
  return times.length ? Math.min(...times) : null;
}

/** Keeps `activity.nextAlarmAt` at what the scheduler says. */
export class Alarms {
  #activity;
  #log;
  #getCron = null;

  constructor({ activity, log }) {
    this.#activity = activity;
    this.#log = log;
  }

  /** Take over the way to the scheduler; none when it is switched off. */
  adopt(getCron) {
    this.#getCron = getCron ?? null;
    return this.reread();
  }

  async reread() {
    try {
      const cron = this.#getCron?.();
      this.#activity.nextAlarmAt = cron ? nextAlarm(await cron.list({ includeDisabled: false })) : null;
    } catch (error) {
      this.#log.warn(`the scheduler could not be read: ${error?.message ?? error}`);
    }
  }
}
