#!/usr/bin/env node
/** The stand-in's command line: `openclaw.mjs gateway run`, nothing else. */
import { registerHooks } from "node:module";

const SDK = "openclaw/plugin-sdk/";

// Plugins import the SDK by its package name from wherever they are; the real one maps that as well.
registerHooks({
  resolve(specifier, context, next) {
    if (!specifier.startsWith(SDK)) return next(specifier, context);
    return { url: new URL(`./sdk/${specifier.slice(SDK.length)}.mjs`, import.meta.url).href, shortCircuit: true };
  },
});

const command = process.argv.slice(2).join(" ");
if (command === "--version") {
  console.log("OpenClaw 2026.9.6 (stand-in)");
} else if (command === "gateway run") {
  const { main } = await import("./lib/main.mjs");
  await main();
} else {
  console.error(`error: the stand-in knows only 'gateway run', not '${command}'`);
  process.exitCode = 1;
}
