/** What runs in this process, for the modules of the SDK. */
export const process = {};
