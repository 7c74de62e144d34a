// OpenAI's own client. Its documentation: https://github.com/openai/openai-node
import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { test } from "node:test";
import { base, isPng, picture, picturePath } from "./given.mjs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ apiKey: "any-key", baseURL: `${base}/v1`, maxRetries: 0 });
const model = "Qwen-Image-Edit-2511";
const quick = { model, prompt: "make it sunset", size: "64x64", num_inference_steps: 1, seed: 7 };

test("one file, streamed from disk", async () => {
  const answer = await client.images.edit({ ...quick, image: createReadStream(picturePath) });
  assert.ok(isPng(answer.data[0].b64_json));
  assert.equal(answer.size, "64x64");
  assert.equal(answer.output_format, "png");
});

test("a list of files, two variants", async () => {
  const file = () => toFile(Buffer.from(picture, "base64"), "a.png", { type: "image/png" });
  const answer = await client.images.edit({ ...quick, image: [await file(), await file()], n: 2 });
  assert.equal(answer.data.length, 2);
  assert.notEqual(answer.data[0].b64_json, answer.data[1].b64_json);
});

test("a stream of events", async () => {
  const image = createReadStream(picturePath);
  const events = [];
  const steps = { num_inference_steps: 4, partial_images: 2, stream: true };
  for await (const event of await client.images.edit({ ...quick, ...steps, image })) events.push(event);
  assert.deepEqual(
    events.map((event) => event.type),
    ["image_edit.partial_image", "image_edit.partial_image", "image_edit.completed"],
  );
  assert.deepEqual(events.slice(0, 2).map((event) => event.partial_image_index), [0, 1]);
  assert.ok(events.every((event) => isPng(event.b64_json)));
  assert.ok(events[2].usage.total_tokens > 0);
});

test("models", async () => {
  const ids = [];
  for await (const each of client.models.list()) ids.push(each.id);
  assert.ok(ids.includes(model));
});

test("errors are the client's own classes, and readable", async () => {
  const edit = (fields) => client.images.edit({ ...quick, image: createReadStream(picturePath), ...fields });
  await assert.rejects(edit({ size: "64x" }), (problem) => {
    assert.ok(problem instanceof OpenAI.BadRequestError);
    assert.match(problem.message, /Invalid size format: '64x'/);
    assert.equal(problem.param, "size");
    return true;
  });
  await assert.rejects(edit({ model: "dall-e-2" }), OpenAI.BadRequestError);
  await assert.rejects(client.models.retrieve("dall-e-2"), OpenAI.NotFoundError);
});
