/** Offer a blob as a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Numbers as little-endian bytes: [width in bytes, value] each. */
function packed(...numbers) {
  return Uint8Array.from(numbers.flatMap(([width, value]) => Array.from({ length: width }, (_, index) => Math.floor(value / 256 ** index) % 256)));
}

/** A zip archive of files, stored without compression: pictures are compressed already. */
export async function zip(files) {
  const [bodies, directory] = [[], []];
  let offset = 0;
  for (const { name, blob } of files) {
    const [bytes, text] = [new Uint8Array(await blob.arrayBuffer()), new TextEncoder().encode(name)];
    // Version 2.0, names in UTF-8, stored, dated 1980-01-01.
    const shared = packed([2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, text.length], [2, 0]);
    bodies.push(packed([4, 0x04034b50]), shared, text, bytes);
    directory.push(packed([4, 0x02014b50], [2, 20]), shared, packed([2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), text);
    offset += 4 + shared.length + text.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = packed([4, 0x06054b50], [4, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]);
  return new Blob([...bodies, ...directory, end], { type: "application/zip" });
}

const MAX_FRAME_PX = 640;
const QUALITY = 0.9;
const letters = (text) => new TextEncoder().encode(text);
const chunk = (name, ...parts) => {
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  return [letters(name), packed([4, size]), ...parts, new Uint8Array(size % 2)];
};

/** The chunks of a still WebP that hold its pixels. */
function pixelChunks(bytes) {
  const view = new DataView(bytes.buffer);
  const found = [];
  for (let at = 12; at < bytes.length; ) {
    const end = at + 8 + view.getUint32(at + 4, true);
    const name = String.fromCharCode(...bytes.subarray(at, at + 4));
    if (["VP8 ", "VP8L"].includes(name)) found.push(bytes.subarray(at, end + (end % 2)));
    at = end + (end % 2);
  }
  return found;
}

/** An endless animation of pictures as a WebP file, each shown for so long; null where the browser writes no WebP. */
export async function animation(blobs, frameMs, minSidePx = 0) {
  const frames = [];
  let [width, height] = [0, 0];
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { alpha: false });
  for (const blob of blobs) {
    const bitmap = await createImageBitmap(blob);
    if (!frames.length) {
      const longest = Math.max(bitmap.width, bitmap.height);
      const scale = Math.max(minSidePx / longest, Math.min(1, MAX_FRAME_PX / longest));
      [width, height] = [bitmap.width, bitmap.height].map((side) => Math.round(side * scale));
      Object.assign(canvas, { width, height });
      context.imageSmoothingQuality = "high";
    }
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    const still = await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", QUALITY));
    if (still?.type !== "image/webp") return null;
    frames.push(pixelChunks(new Uint8Array(await still.arrayBuffer())));
  }
  const head = [...chunk("VP8X", packed([4, 2], [3, width - 1], [3, height - 1])), ...chunk("ANIM", packed([4, 0], [2, 0]))];
  const body = frames.flatMap((pixels) => chunk("ANMF", packed([3, 0], [3, 0], [3, width - 1], [3, height - 1], [3, frameMs], [1, 2]), ...pixels));
  const parts = [letters("WEBP"), ...head, ...body];
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  return new Blob([letters("RIFF"), packed([4, size]), ...parts], { type: "image/webp" });
}
