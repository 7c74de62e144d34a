import { ApiError, call, callUntilAnswered } from "./api.js";
import { pause } from "./dom.js";
import { base64Of } from "./pictures.js";

const FINAL = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"];
// A browser opens six connections to a host; some must stay free for cancelling and new jobs.
const MAX_POLLS = 3;
const JOBS_AT_ONCE = 2;
const POLL_MS = 3000;
const NUM_PREVIEWS = 3;

let polling = 0;
const waiting = [];

async function inTurn(work) {
  if (polling >= MAX_POLLS) await new Promise((resolve) => waiting.push(resolve));
  else polling += 1;
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next) next();
    else polling -= 1;
  }
}

/** What a browser keeps of an edit. `requests` as `plan` makes them. */
export function newRecord(settings, pictures, requests) {
  let first = 0;
  const parts = requests.map(({ input, poses }) => {
    const part = { key: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, input, first, count: poses.length, job: null, state: null };
    first += poses.length;
    return part;
  });
  return {
    id: Date.now(), settings, parts, state: "RUNNING", error: null, rewrites: [],
    inputs: pictures.map(({ blob, name, width, height }) => ({ blob, name, width, height })),
    poses: requests.flatMap(({ poses }) => poses),
    outputs: Array(first).fill(null),
  };
}

/** An edit of one or more jobs. Emits `change`, and `save` where the record has changed. */
export class Run extends EventTarget {
  constructor(record) {
    super();
    this.record = record;
    this.problem = null;
    this.steps = new Map();
    this.place = null;
    this.stopped = new AbortController();
  }

  get isRunning() {
    return this.record.state === "RUNNING";
  }

  get numDone() {
    return this.record.outputs.filter(Boolean).length;
  }

  /** Run to the end; a run that was interrupted goes on with the jobs that it has. */
  async go() {
    const parts = this.record.parts.filter((part) => part.state !== "COMPLETED");
    const lanes = Array.from({ length: JOBS_AT_ONCE }, async () => {
      for (let part = parts.shift(); part && this.isRunning; part = parts.shift()) await this.runPart(part);
    });
    try {
      await Promise.all(lanes);
      if (this.isRunning) this.end("COMPLETED");
    } catch (problem) {
      if (!this.isRunning) return;
      this.problem = problem;
      this.end("FAILED", problem.message);
      this.cancelJobs();
    }
  }

  end(state, error = null) {
    Object.assign(this.record, { state, error });
    this.stopped.abort();
    this.steps.clear();
    this.changed(true);
  }

  changed(isSaved = false) {
    if (isSaved) this.dispatchEvent(new Event("save"));
    this.dispatchEvent(new Event("change"));
  }

  cancel() {
    this.end("CANCELLED");
    this.cancelJobs();
  }

  cancelJobs() {
    for (const part of this.record.parts) {
      if (part.job && !FINAL.includes(part.state)) callUntilAnswered(`cancel/${part.job}`, { method: "POST" }).catch(() => {});
    }
  }

  async runPart(part) {
    if (part.job === null) await this.submit(part);
    if (!this.isRunning) return this.cancelJobs();
    this.watchQueue(part);
    const signal = this.stopped.signal;
    while (!FINAL.includes(part.state)) {
      const news = await inTurn(() => callUntilAnswered(`stream/${part.job}?wait=${POLL_MS}`, { signal }));
      if (!this.isRunning) return;
      await this.take(part, news);
    }
    await this.finish(part);
  }

  async submit(part) {
    const pictures = await Promise.all(this.record.inputs.map(({ blob }) => base64Of(blob)));
    const body = { input: { ...(pictures.length === 1 ? { image: pictures[0] } : { images: pictures }), ...part.input } };
    if (this.record.outputs.length === 1) body.input.partial_images = NUM_PREVIEWS;
    const headers = { "idempotency-key": part.key };
    const accepted = await callUntilAnswered("run", { method: "POST", body, headers });
    Object.assign(part, { job: accepted.id, state: accepted.status });
    this.changed(true);
  }

  async take(part, news) {
    part.state = news.status;
    let isSaved = false;
    for (const { output } of news.stream) {
      const index = part.first + output.index;
      if (output.type === "image") {
        await this.keep(index, output.image, output.seed, output.final_prompt);
        isSaved = true;
      } else {
        this.steps.set(index, { ...this.steps.get(index), ...output });
      }
    }
    this.changed(isSaved);
  }

  async keep(index, image, seed, prompt) {
    const type = `image/${this.record.settings.output_format}`;
    const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
    this.steps.delete(index);
    this.record.outputs[index] = { blob: new Blob([bytes], { type }), seed, prompt };
  }

  /** After the job's end: its error, what the stream gave to another tab or an earlier page, and the rewriting. */
  async finish(part) {
    const lacks = this.record.outputs.slice(part.first, part.first + part.count).some((each) => !each);
    if (part.state === "COMPLETED" && !lacks && !part.input.rewrite_prompt) return;
    const { error, output } = await callUntilAnswered(`status/${part.job}`, { signal: this.stopped.signal });
    if (part.state !== "COMPLETED") throw new ApiError(200, error ?? `The job ended as ${part.state}.`);
    this.record.rewrites.push(...output.rewritten_log);
    for (const [index, image] of output.images.entries()) await this.keep(part.first + index, image, output.seed, output.final_prompts[index]);
    this.changed(true);
  }

  /** Follow the job's place among those that wait. The service counts them; clients take turns, so it is a guess. */
  async watchQueue(part) {
    let place = Infinity;
    while (part.state === "IN_QUEUE" && this.isRunning) {
      const health = await call("health", { signal: this.stopped.signal }).catch(() => null);
      if (health && part.state === "IN_QUEUE") {
        place = Math.min(place, health.jobs.inQueue);
        this.place = place;
        this.changed();
      }
      await pause(1500);
    }
    this.place = null;
  }
}
