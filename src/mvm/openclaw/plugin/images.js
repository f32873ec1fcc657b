/**
 * Pictures that came with a message, as attachments of `chat.send`. Bounded: what is too big is left out, not cut.
 */
import { readFile, stat, unlink } from "node:fs/promises";
import { basename, join, resolve, sep } from "node:path";
import { mediaOf } from "./message.js";

const MAX_IMAGES = 8;
const MAX_IMAGE_BYTES = 5 * 1024 * 1024;

/**
 * Remove the files that came with a message that is dealt with. OpenClaw keeps them for ever, and anybody may send some:
 * without this a stranger could fill the gateway's disk. Only what lies in OpenClaw's own store is touched.
 */
export async function discardFiles(event, store = join(process.env.OPENCLAW_STATE_DIR ?? "", "media")) {
  for (const { path } of mediaOf(event?.ctx)) {
    if (resolve(path).startsWith(resolve(store) + sep)) await unlink(path).catch(() => {});
  }
}

/** `[{type, mimeType, fileName, content}]` with base64 content; a file that is gone is left out. */
export async function readImages(event) {
  const given = (event.images ?? []).slice(0, MAX_IMAGES).filter((image) => image?.data?.length <= (MAX_IMAGE_BYTES * 4) / 3);
  if (given.length) {
    return given.map((image, index) => attachment(image.mimeType, `image-${index + 1}`, image.data));
  }
  const found = [];
  for (const { path, contentType } of mediaOf(event.ctx)) {
    if (found.length === MAX_IMAGES) break;
    const size = (await stat(path).catch(() => null))?.size ?? Infinity;
    if (!contentType.startsWith("image/") || size > MAX_IMAGE_BYTES) continue;
    found.push(attachment(contentType, basename(path), (await readFile(path)).toString("base64")));
  }
  return found;
}

function attachment(mimeType, fileName, content) {
  return { type: "image", mimeType, fileName, content };
}
