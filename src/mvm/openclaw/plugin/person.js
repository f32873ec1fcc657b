/** How a worker's OpenClaw addresses whoever it belongs to: its one channel, and the one address on it. */
export const CHANNEL = "mvm";
export const PERSON = "person";
