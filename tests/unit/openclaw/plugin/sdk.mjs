/** In place of OpenClaw's SDK: what a test puts into `sdk` before it imports a part that uses it. */
import { registerHooks } from "node:module";

export const sdk = (globalThis.sdkOfTheTest = {});
const NAMES = ["GatewayClient", "sendDurableMessageBatch", "runPassiveAccountLifecycle", "definePluginEntry", "PlatformMessageNotDispatchedError"];
const source = NAMES.map((name) => `export const ${name} = globalThis.sdkOfTheTest.${name};`).join("\n");

registerHooks({
  resolve(specifier, context, next) {
    if (!specifier.startsWith("openclaw/plugin-sdk/")) return next(specifier, context);
    return { url: `data:text/javascript,${encodeURIComponent(source)}`, shortCircuit: true };
  },
});
