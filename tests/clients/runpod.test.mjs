// RunPod's own client. Its documentation: https://github.com/runpod/js-sdk
import assert from "node:assert/strict";
import { test } from "node:test";
import { base, countRequests, isPng, small } from "./given.mjs";
import runpodSdk from "runpod-sdk";

const endpoint = runpodSdk("any-key", { baseUrl: `${base}/v2` }).endpoint("any-endpoint");

async function finished(id) {
  let job;
  do {
    job = await endpoint.statusSync(id, 10000);
  } while (!job.completed);
  return job;
}

test("runSync answers with the pictures", async () => {
  const job = await endpoint.runSync({ input: small });
  assert.equal(job.status, "COMPLETED");
  assert.equal(job.succeeded, true);
  assert.ok(isPng(job.output.images[0]));
  assert.deepEqual(job.output.final_prompts, ["make it sunset"]);
  for (const name of ["delayTime", "executionTime"]) assert.equal(typeof job[name], "number");
});

test("runSync follows a job that takes longer than its wait", async () => {
  const long = { ...small, width: 512, height: 512, num_inference_steps: 40 };
  const job = await endpoint.runSync({ input: long }, 1000);
  // At the timeout the client gives up polling and tells what it has; the job goes on.
  assert.equal((await finished(job.id)).status, "COMPLETED");
});

test("run, status and statusSync", async () => {
  const { id, status } = await endpoint.run({ input: small });
  assert.equal(status, "IN_QUEUE");
  const job = await finished(id);
  assert.equal(job.status, "COMPLETED");
  assert.deepEqual((await endpoint.status(id)).output, job.output);
});

test("stream yields each picture when it is done, without hammering", async () => {
  const { id } = await endpoint.run({
    input: { ...small, views: "orbit:8", width: 512, height: 512, num_inference_steps: 12 },
  });
  const pictures = [];
  let items = 0;
  let statusAtFirst;
  const requests = await countRequests(async () => {
    for await (const { output } of endpoint.stream(id)) {
      items += 1;
      if (output.type !== "image") continue;
      statusAtFirst ??= (await endpoint.status(id)).status;
      pictures[output.index] = output.image;
    }
  });
  console.log(`${requests} requests for ${items} items, at the first picture the job was ${statusAtFirst}`);
  // Each request waits until there is something new; two more learn that the job runs and that it has ended.
  assert.ok(requests <= items + 3, `${requests} requests for ${items} items`);
  assert.equal(statusAtFirst, "IN_PROGRESS");
  assert.deepEqual((await endpoint.status(id)).output.images, pictures);
});

test("cancel", async () => {
  const { id } = await endpoint.run({ input: { ...small, width: 512, height: 512, num_inference_steps: 100 } });
  assert.deepEqual(await endpoint.cancel(id), { id, status: "CANCELLED" });
  assert.equal((await endpoint.status(id)).status, "CANCELLED");
});

test("health and purgeQueue", async () => {
  const { jobs, workers } = await endpoint.health();
  assert.deepEqual(Object.keys(jobs).sort(), ["completed", "failed", "inProgress", "inQueue", "retried"]);
  assert.ok(workers.ready >= 1);
  assert.equal((await endpoint.purgeQueue()).status, "completed");
});

test("a bad input is refused with its reason", async () => {
  await assert.rejects(endpoint.run({ input: { ...small, num_inference_steps: 0 } }), (problem) => {
    assert.equal(problem.response.status, 400);
    assert.match(problem.response.data.error, /num_inference_steps must be between 1 and/);
    return true;
  });
});
