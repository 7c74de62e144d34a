// What every test is given: where the service listens, an upload, and a count of the requests made.
import { readFileSync } from "node:fs";

export const base = process.env.BASE_URL;
export const picturePath = process.env.PICTURE;
export const picture = picturePath && readFileSync(picturePath).toString("base64");

export const small = { image: picture, prompt: "make it sunset", width: 64, height: 64, num_inference_steps: 1 };

const fetch = globalThis.fetch;
let requests = 0;
globalThis.fetch = (...args) => {
  requests += 1;
  return fetch(...args);
};

export async function countRequests(work) {
  const before = requests;
  await work();
  return requests - before;
}

export const isPng = (b64) => Buffer.from(b64, "base64").subarray(1, 4).toString() === "PNG";
