import { call, open } from "./api.js";
import { Camera } from "./camera.js";
import { $, el, say } from "./dom.js";
import { applySettings, clearError, clearErrors, plan, readForm, rollDice, showError, writeForm } from "./edit.js";
import { History } from "./history.js";
import { pictureOf, Pictures, urlOf } from "./pictures.js";
import { codeOf } from "./request.js";
import { Results } from "./results.js";
import { newRecord, Run } from "./run.js";

const DEFAULT_MAX_EDITS = 16;
const DAY_FORMAT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

const pictures = new Pictures();
const history = new History();
const camera = new Camera((await open()).poses);
const runs = new Map();
let maxEdits = DEFAULT_MAX_EDITS;
let hasTinyWeights = false;

const results = new Results({
  adopt: (prompt) => {
    $("prompt").value = prompt;
    $("rewrite_prompt").checked = false;
    refresh();
    $("prompt").focus();
  },
  retry: (run) => begin(run.record.settings, run.record.inputs),
  sameSettings: async (record) => {
    pictures.set(await Promise.all(record.inputs.map(({ blob, name }) => pictureOf(blob, name))));
    writeForm(record.settings, camera);
    refresh();
    $("start").focus();
  },
  useAsInput: async (blob, name) => {
    pictures.set([await pictureOf(blob, name)]);
    camera.set(null);
    $("prompt").focus();
  },
  words: (pose) => camera.words(pose),
});

function requests(settings, number) {
  return plan(settings, number, camera.poses, maxEdits);
}

/** What the choice of views draws. */
function viewsHint({ views, pose }) {
  if (views === "one") return "One picture, as set above.";
  if (views === "all") return "All sides, heights and distances: takes a while.";
  return `${views} sides, ${pose ? "at the height and distance above" : "at eye level and a medium distance"}.`;
}

/** What follows from the form: the words that will be sent, and which choices there are. */
function refresh() {
  const several = pictures.list.length > 1;
  $("use").hidden = !several;
  const isBatch = several && document.querySelector("input[name=use]:checked").value === "batch";
  for (const input of document.querySelectorAll("input[name=views]")) {
    input.disabled = isBatch && input.value !== "one";
    if (isBatch) input.checked = input.value === "one";
  }
  const settings = readForm(camera);
  $("views-hint").textContent = viewsHint(settings);
  const planned = requests(settings, pictures.list.length);
  const poses = planned.flatMap((each) => each.poses);
  const first = poses[0] ? camera.words(poses[0]) : "";
  const more = isBatch ? `, for each of ${poses.length} pictures` : poses.length > 1 ? `, and ${poses.length - 1} other views` : "";
  const words = [first && el("b", {}, first), settings.prompt.trim() && ` ${settings.prompt.trim()}`].filter(Boolean);
  $("words").replaceChildren(...(words.length ? words : [el("span", { class: "hint" }, "Nothing yet: move the camera or write an instruction.")]), more);
  $("start").firstChild.textContent = poses.length > 1 ? `Start ${poses.length} edits ` : "Start ";
  if ($("request").open) showCode(planned[0]);
}

async function showCode(part) {
  const { code, hint } = await codeOf($("dialect").value, $("language").value, part, pictures.list);
  const number = requests(readForm(camera), pictures.list.length).length;
  $("request-hint").textContent = number > 1 ? `The first of ${number} requests. ${hint}` : hint;
  $("code").textContent = code;
  $("copy").disabled = code === "";
}

async function begin(settings, list) {
  clearErrors();
  if (!list.length) return showError({ field: "image", message: "Add a picture first." }, pictures);
  const run = watch(new Run(newRecord(settings, list, requests(settings, list.length))));
  results.show(run);
  showHistory();
  say("Started");
  if (matchMedia("(max-width: 60rem)").matches) $("stage").scrollIntoView({ block: "start" });
  await run.go();
  if (run.problem && run.numDone === 0) {
    showError(run.problem, pictures, settings);
    if (run.problem.status >= 400) discard(run);
  }
}

/** A request that was rejected makes no history. */
async function discard(run) {
  runs.delete(run.record.id);
  await history.remove(run.record.id);
  if (results.run === run) showLatest();
  showHistory();
}

function showLatest() {
  const latest = [...runs.values()].at(-1);
  if (latest) results.show(latest);
  else results.showEmpty();
}

function watch(run) {
  runs.set(run.record.id, run);
  run.addEventListener("save", async () => {
    for (const id of await history.save(run.record)) runs.delete(id);
    showHistory();
  });
  run.addEventListener("change", () => results.update(run));
  return run;
}

function showHistory() {
  const newest = [...runs.values()].sort((a, b) => b.record.id - a.record.id);
  $("clear").disabled = newest.length === 0;
  $("history-hint").hidden = newest.length > 0;
  $("runs").replaceChildren(...newest.map(historyItem));
}

function historyItem(run) {
  const { record } = run;
  const shown = record.outputs.find(Boolean) ?? record.inputs.find(({ width }) => width);
  const what = record.outputs.find(Boolean)?.prompt ?? (record.settings.prompt || (record.poses[0] ? camera.words(record.poses[0]) : ""));
  const open = () => {
    results.show(run);
    showHistory();
    $("stage").focus({ preventScroll: true });
    $("stage").scrollIntoView({ block: "nearest" });
  };
  const count = record.outputs.length > 1 ? record.outputs.length : null;
  const state = record.state === "COMPLETED" ? "" : `, ${record.state.toLowerCase()}`;
  return el("li", {}, el(
    "button",
    { type: "button", class: `past ${record.state.toLowerCase()}`, title: what, "aria-label": `${DAY_FORMAT.format(record.id)}: ${what}${state}`, "aria-current": results.run === run ? "true" : null, "data-count": count, onclick: open },
    shown ? el("img", { src: urlOf(shown.blob), alt: "" }) : el("span", { class: "unseen" }, "no preview"),
  ));
}

async function loadHistory() {
  for (const record of await history.load()) {
    const run = watch(new Run(record));
    if (run.isRunning) run.go();
  }
  showLatest();
  showHistory();
}

async function loadSettings() {
  const settings = await call("playground/settings.json").catch(() => null);
  if (settings === null) return;
  maxEdits = settings.limits.max_edits_per_request;
  hasTinyWeights = settings.has_tiny_weights;
  applySettings(settings);
  refresh();
}

function listen() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(readForm(camera), pictures.list);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("key-dialog").open) $("form").requestSubmit();
  });
  $("form").addEventListener("input", (event) => {
    clearError(event.target);
    clearError($("prompt")); // it may be empty beside a camera pose or several views
    refresh();
  });
  $("form").addEventListener("change", refresh);
  $("request").addEventListener("toggle", refresh);
  $("sphere").addEventListener("change", () => {
    clearError($("prompt"));
    refresh();
  });
  $("tiles").addEventListener("change", () => {
    clearError($("file"));
    $("examples").hidden = pictures.list.length > 0 && !hasTinyWeights; // these know nothing but the examples' world
    camera.showPicture(pictures.list[0] ?? null);
    refresh();
  });
  $("dice").addEventListener("click", rollDice);
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText($("code").textContent);
    say("Copied");
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 1500);
  });
  $("clear").addEventListener("click", async () => {
    for (const run of runs.values()) if (run.isRunning) run.cancel();
    runs.clear();
    await history.clear();
    results.showEmpty();
    showHistory();
    say("The history is empty");
  });
  addEventListener("key", loadSettings);
}

if (/Mac|iPhone|iPad/.test(navigator.platform)) $("shortcut").textContent = "⌘ Enter";
listen();
refresh();
await Promise.all([loadHistory(), loadSettings()]);
document.documentElement.dataset.ready = "true";
