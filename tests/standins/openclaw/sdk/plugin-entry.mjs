/** `openclaw/plugin-sdk/plugin-entry`. */
export function definePluginEntry(entry) {
  for (const name of ["id", "name", "description"]) {
    if (typeof entry[name] !== "string") throw new Error(`a plugin entry has a ${name}`);
  }
  if (typeof entry.register !== "function") throw new Error("a plugin entry has a register function");
  return entry;
}
