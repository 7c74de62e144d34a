// The AI SDK with RunPod's and OpenAI's providers. Their documentation: https://github.com/runpod/ai-sdk-provider and
// https://ai-sdk.dev/providers/ai-sdk-providers/openai
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createRunpod } from "@runpod/ai-sdk-provider";
import { generateImage } from "ai";
import { base, isPng, picturePath } from "./given.mjs";

const prompt = { text: "make it sunset", images: [readFileSync(picturePath)] };
const isJpeg = (b64) => Buffer.from(b64, "base64").subarray(0, 3).toString("hex") === "ffd8ff";

test("RunPod's provider, as for its public endpoint of this model", async () => {
  const runpod = createRunpod({ apiKey: "any-key", baseURL: `${base}/v2/qwen-image-edit-2511` });
  const { image } = await generateImage({
    model: runpod.image("qwen/qwen-image-edit-2511"),
    prompt,
    size: "512x512",
    maxRetries: 0,
    providerOptions: { runpod: { num_inference_steps: 1, maxPollAttempts: 30, pollIntervalMillis: 4000 } },
  });
  assert.ok(isJpeg(image.base64));
});

test("RunPod's provider, with its defaults for a model that it does not know", async () => {
  const runpod = createRunpod({ apiKey: "any-key", baseURL: `${base}/v2/any` });
  const { image } = await generateImage({
    model: runpod.image("camera-edit"),
    prompt,
    size: "512x512",
    seed: 7,
    maxRetries: 0,
    providerOptions: { runpod: { num_inference_steps: 1 } },
  });
  assert.ok(isPng(image.base64));
});

test("OpenAI's provider", async () => {
  const openai = createOpenAI({ apiKey: "any-key", baseURL: `${base}/v1` });
  const { images } = await generateImage({
    model: openai.image("Qwen-Image-Edit-2511"),
    prompt,
    size: "64x64",
    n: 2,
    maxRetries: 0,
    providerOptions: { openai: { quality: "low", user: "u-1", safetyIdentifier: "u-1", complexity: "low" } },
  });
  assert.equal(images.length, 2);
  assert.ok(images.every((image) => isPng(image.base64)));
});
