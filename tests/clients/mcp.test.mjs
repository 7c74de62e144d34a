// MCP's own client. Its documentation: https://github.com/modelcontextprotocol/typescript-sdk
import assert from "node:assert/strict";
import { test } from "node:test";
import { base, isPng, picture } from "./given.mjs";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const client = new Client({ name: "test", version: "1" });
const requestInit = { headers: { "x-request-id": "mcp-typescript" } };
await client.connect(new StreamableHTTPClientTransport(new URL(`${base}/mcp`), { requestInit }));
const quick = { image: picture, size: "64x64", num_inference_steps: 1, seed: 7, output_format: "png" };
const call = (name, fields, options) =>
  client.callTool({ name, arguments: { ...quick, ...fields } }, undefined, options);
const images = (result) => result.content.filter((each) => each.type === "image").map((each) => each.data);

test("the tools", async () => {
  const names = (await client.listTools()).tools.map((tool) => tool.name);
  assert.deepEqual(names, ["edit_image", "move_camera", "orbit", "list_adapters"]);
});

test("an edit, and the camera moved", async () => {
  const edited = await call("edit_image", { prompt: "make it sunset" });
  assert.ok(images(edited).every(isPng));
  assert.equal(edited.structuredContent.pictures[0].seed, 7);
  const moved = await call("move_camera", { azimuth: 80 });
  assert.equal(moved.structuredContent.pictures[0].camera.azimuth, 90);
});

test("an orbit with progress", async () => {
  const reports = [];
  const onprogress = ({ progress, total }) => reports.push([progress, total]);
  const result = await call("orbit", { num_views: 2, num_inference_steps: 2 }, { onprogress });
  assert.equal(images(result).length, 2);
  assert.deepEqual(reports.at(-1), [4, 4]);
});

test("a cancelled call leaves its place to the next one", async () => {
  const leaving = new AbortController();
  const onprogress = () => leaving.abort();
  const slow = { prompt: "make it sunset", size: "512x512", num_inference_steps: 100 };
  await assert.rejects(call("edit_image", slow, { onprogress, signal: leaving.signal }));
  assert.equal(images(await call("edit_image", { prompt: "make it sunset" })).length, 1);
});

test("an error names the field", async () => {
  const result = await call("orbit", { num_views: 9 });
  assert.ok(result.isError);
  assert.match(result.content[0].text, /num_views must be between 1 and 8, got 9/);
});

test.after(() => client.close());
