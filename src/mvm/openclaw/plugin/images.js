/**
 * Pictures that came with a message, as attachments of `chat.send`. Bounded: what is too big is left out, not cut.
 */
import { readFile, stat } from "node:fs/promises";
import { basename } from "node:path";
import { mediaOf } from "./message.js";

const MAX_IMAGES = 8;
const MAX_IMAGE_BYTES = 5 * 1024 * 1024;

/** `[{type, mimeType, fileName, content}]` with base64 content. */
export async function readImages(event) {
  const given = (event.images ?? []).slice(0, MAX_IMAGES).filter((image) => image?.data?.length <= (MAX_IMAGE_BYTES * 4) / 3);
  if (given.length) {
    return given.map((image, index) => attachment(image.mimeType, `image-${index + 1}`, image.data));
  }
  const found = [];
  for (const { path, contentType } of mediaOf(event.ctx)) {
    if (found.length === MAX_IMAGES) break;
    if (!contentType.startsWith("image/") || (await stat(path)).size > MAX_IMAGE_BYTES) continue;
    found.push(attachment(contentType, basename(path), (await readFile(path)).toString("base64")));
  }
  return found;
}

function attachment(mimeType, fileName, content) {
  return { type: "image", mimeType, fileName, content };
}
