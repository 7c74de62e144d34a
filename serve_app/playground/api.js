import { $, pause, say } from "./dom.js";

export const BASE = new URL(".", location.href).href;
const KEY = "camera-edit-key";
const LONGEST_PAUSE_MS = 5000;

let asking = null;
let needsKey = false;

/** An answer of the service that is not a success: its words, and the field that they name, if any. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
    const match = /(?:^|[^\w.])'?input\.(\w+)(?:\[(\d+)\])?/.exec(message);
    this.field = match?.[1] ?? null;
    this.index = match?.[2] === undefined ? null : Number(match[2]);
  }
}

export const storedKey = () => sessionStorage.getItem(KEY);

/** Read what the page needs to know before anything else: `{needs_key, has_playground, poses}`. */
export async function open() {
  const answer = await (await fetch("playground/poses.json")).json();
  needsKey = answer.needs_key;
  $("key-button").hidden = !needsKey;
  $("key-button").addEventListener("click", () => askForKey(""));
  return answer;
}

/** Show the dialog and wait until it is closed; resolves to whether there is a key now. One dialog serves all. */
function askForKey(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("error-key").textContent = problem;
    $("key").value = "";
    let given = false;
    $("key-form").onsubmit = () => {
      const key = $("key").value.trim();
      if (key) sessionStorage.setItem(KEY, key);
      given = key !== "";
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      if (given) dispatchEvent(new Event("key"));
      resolve(given);
    };
    dialog.showModal();
    $("key").focus();
  });
  return asking;
}

/** Call the API; JSON in, JSON out. Asks for the key where it is missing or wrong.
 *  Throws ApiError for an answer, TypeError where there was none. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  if (needsKey && !storedKey() && !(await askForKey(""))) throw new ApiError(401, "An API key is needed.");
  const key = storedKey();
  const response = await fetch(BASE + path, {
    method,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: { ...headers, ...(key ? { authorization: `Bearer ${key}` } : {}), ...(body === undefined ? {} : { "content-type": "application/json" }) },
  });
  const text = await response.text();
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // Serve's own proxy answers so while the service restarts, with 404, too.
    throw new ApiError([401, 403, 413].includes(response.status) ? response.status : 502, `The answer is no JSON: ${text.slice(0, 80)}`);
  }
  if (response.ok) return answer;
  const message = typeof answer.error === "string" ? answer.error : (answer.error?.message ?? `HTTP ${response.status}`);
  if (response.status === 401) {
    needsKey = true;
    if (key === storedKey()) sessionStorage.removeItem(KEY);
    const isReplaced = storedKey() !== null; // by an answer to another call, while this one was on its way
    if (isReplaced || (await askForKey(key ? message : ""))) return call(path, { method, body, headers, signal });
  }
  const problem = new ApiError(response.status, message);
  problem.retryAfterMs = Number(response.headers.get("retry-after") ?? 0) * 1000;
  throw problem;
}

const lost = new Map();

/** Call the API until it answers: a lost connection, a full queue and a service that restarts are waited out. */
export async function callUntilAnswered(path, options = {}) {
  const token = {};
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await call(path, options);
      setLost(token, "");
      return answer;
    } catch (problem) {
      const isTemporary = problem instanceof TypeError || [429, 502, 503].includes(problem.status);
      if (!isTemporary || options.signal?.aborted) {
        setLost(token, "");
        throw problem;
      }
      setLost(token, problem instanceof TypeError ? "Connection lost. Trying again; nothing is lost." : problem.message);
      await pause(Math.min(LONGEST_PAUSE_MS, problem.retryAfterMs || 500 * 2 ** Math.min(attempt, 4)));
    }
  }
}

/** Show why a call waits; an empty text: it no longer does. */
function setLost(token, text) {
  const was = lost.size;
  if (text) lost.set(token, text);
  else lost.delete(token);
  const shown = [...lost.values()].at(-1) ?? "";
  if ($("service").textContent !== shown) $("service").textContent = shown;
  $("service").classList.toggle("lost", shown !== "");
  if (was && !lost.size) say("Connected again");
}
