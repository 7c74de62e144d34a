// MCP's own client at a service that requires the API key in KEY.
import assert from "node:assert/strict";
import { test } from "node:test";
import { base } from "./given.mjs";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

async function listTools(headers) {
  const client = new Client({ name: "test", version: "1" });
  await client.connect(new StreamableHTTPClientTransport(new URL(`${base}/mcp`), { requestInit: { headers } }));
  const { tools } = await client.listTools();
  await client.close();
  return tools;
}

for (const [name, headers] of [["no key", {}], ["a wrong key", { authorization: "Bearer wrong" }]]) {
  test(`${name} is a 401`, () =>
    assert.rejects(listTools(headers), (problem) => {
      assert.equal(problem.code, 401);
      assert.match(problem.message, /The API key is missing or wrong/);
      return true;
    }));
}

test("the key opens the tools", async () => {
  assert.equal((await listTools({ authorization: `Bearer ${process.env.KEY}` })).length, 4);
});
