import { $, el } from "./dom.js";

const TEXTS = ["prompt", "seed", "num_inference_steps", "guidance_scale", "output_format", "width", "height"];
const NUMBERS = ["seed", "num_inference_steps", "guidance_scale", "width", "height"];
const DEFAULTS = { guidance_scale: 1, output_format: "png" };

/** The form's fields as they stand; `camera` gives the pose. */
export function readForm(camera) {
  return {
    ...Object.fromEntries(TEXTS.map((name) => [name, $(name).value])),
    rewrite_prompt: $("rewrite_prompt").checked,
    loras: readLoras(),
    views: document.querySelector("input[name=views]:checked").value,
    use: document.querySelector("input[name=use]:checked").value,
    pose: camera.pose,
  };
}

export function writeForm(settings, camera) {
  for (const name of TEXTS) $(name).value = settings[name];
  $("rewrite_prompt").checked = settings.rewrite_prompt && !$("rewrite_prompt").disabled;
  for (const name of ["views", "use"]) document.querySelector(`input[name=${name}][value="${settings[name]}"]`).checked = true;
  writeLoras(settings.loras ?? []);
  camera.set(settings.pose);
}

/** The adapters that a request may name, as the form shows them. */
const rows = () => [...$("loras").querySelectorAll("div")].map((row) => ({ name: row.dataset.name, box: row.querySelector("[type=checkbox]"), weight: row.querySelector(".weight") }));

const readLoras = () => rows().filter((row) => row.box.checked).map(({ name, weight }) => ({ name, weight: weight.value }));

function writeLoras(uses) {
  for (const { name, box, weight } of rows()) {
    const use = uses.find((each) => each.name === name);
    box.checked = use !== undefined;
    weight.value = use?.weight ?? weight.defaultValue;
  }
  const gone = uses.filter((use) => !rows().some((row) => row.name === use.name)).map(({ name }) => name);
  $("error-loras").textContent = gone.length ? `This service no longer has ${gone.join(", ")}.` : "";
}

function loraRow({ name, weight, min_weight, max_weight }) {
  const title = `from ${min_weight} to ${max_weight}`;
  const box = el("input", { type: "checkbox", "aria-describedby": "error-loras" });
  const choose = () => (box.checked = true);
  const inputmode = min_weight < 0 ? null : "decimal"; // some keypads for decimals have no minus
  return el("div", { "data-name": name },
    el("label", { class: "check" }, box, el("span", {}, name)),
    el("input", { class: "weight", inputmode, value: weight, title, "aria-label": `Weight of ${name}, ${title}`, "aria-describedby": "error-loras", oninput: choose }));
}

/** What a text is sent as. One that is no number is sent as it is: the service says what is wrong with it. */
const numberOf = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);

/** The requests that the settings make: each a RunPod `input` without its pictures, and the poses that it draws. */
export function plan(settings, numPictures, poses, maxEdits) {
  const common = { prompt: settings.prompt };
  for (const name of [...NUMBERS, "output_format"]) {
    const value = NUMBERS.includes(name) ? numberOf(settings[name]) : settings[name];
    if (value !== "" && value !== DEFAULTS[name]) common[name] = value;
  }
  if (settings.rewrite_prompt) common.rewrite_prompt = true;
  if (settings.loras?.length) common.loras = settings.loras.map(({ name, weight }) => (weight.trim() ? { name, weight: numberOf(weight) } : { name }));
  const pose = settings.pose;
  if (settings.views === "all") {
    const chunks = [];
    for (let first = 0; first < poses.length; first += maxEdits) chunks.push(poses.slice(first, first + maxEdits));
    return chunks.map((chunk) => ({ input: { ...common, views: chunk.map(plain) }, poses: chunk.map(plain) }));
  }
  if (settings.views !== "one") {
    const number = Number(settings.views);
    const { elevation, distance } = pose ?? { elevation: 0, distance: 1 };
    const around = Array.from({ length: number }, (_, index) => ({ azimuth: (index * 360) / number, elevation, distance }));
    return [{ input: { ...common, views: `orbit:${number}`, elevation, distance }, poses: around }];
  }
  const input = { ...common, ...pose };
  if (numPictures > 1 && settings.use === "batch") {
    return [{ input: { ...input, prompt: Array(numPictures).fill(settings.prompt) }, poses: Array(numPictures).fill(pose) }];
  }
  return [{ input, poses: [pose] }];
}

const plain = ({ azimuth, elevation, distance }) => ({ azimuth, elevation, distance });

/** Show an error at the field that it names, or at the button.
 *  @param settings those of the request, from which the form may differ by now */
export function showError(problem, pictures, settings) {
  clearErrors();
  const own = problem.field && document.querySelector(`.error[data-field~="${problem.field}"]`);
  const place = own || $("error-general");
  place.textContent = problem.message;
  if (!own) return;
  const isPicture = place.id === "error-image";
  const control = isPicture ? $("file") : controlOf(problem, settings);
  if (isPicture) pictures.tiles.children[problem.index ?? 0]?.classList.add("wrong");
  control?.closest("details")?.setAttribute("open", "");
  control?.setAttribute("aria-invalid", "true");
  control?.focus({ preventScroll: true });
  place.scrollIntoView({ block: "center" });
}

function controlOf({ field, index }, settings) {
  if (field === "loras") return rows().find((row) => row.name === settings.loras[index ?? 0]?.name)?.weight;
  return $(field) ?? document.querySelector(`input[name=${field}]:checked`);
}

/** Forget what was wrong with a field that has changed. */
export function clearError(changed) {
  const control = changed.closest("#loras div")?.querySelector(".weight") ?? changed;
  $("error-general").textContent = "";
  if (!control.hasAttribute("aria-invalid")) return;
  control.removeAttribute("aria-invalid");
  const place = document.getElementById(control.getAttribute("aria-describedby")?.split(" ").at(-1));
  if (place) place.textContent = "";
}

export function clearErrors() {
  for (const place of document.querySelectorAll("#form .error")) place.textContent = "";
  for (const control of document.querySelectorAll("#form [aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const tile of document.querySelectorAll(".tile.wrong")) tile.classList.remove("wrong");
}

/** Say what this service has and what its fields take. */
export function applySettings(settings) {
  $("rewrite_prompt").disabled = !settings.rewriter;
  $("rewrite-hint").textContent = settings.rewriter ? "" : "This service has no rewriter.";
  if (settings.has_tiny_weights) $("examples-label").textContent = "Tiny weights: they know these toys, not photographs.";
  const chosen = readLoras();
  const requestable = settings.adapters.filter((each) => each.apply !== "fused");
  $("loras").hidden = requestable.length === 0;
  $("loras").replaceChildren($("loras").firstElementChild, ...requestable.map(loraRow));
  writeLoras(chosen);
  const adapters = settings.adapters.filter((each) => each.apply !== "request").map((each) => `${each.name} × ${each.weight}`).join(", ");
  $("model").textContent = `Model: ${settings.model}${adapters ? `, with the adapters ${adapters}` : ""}.`;
  $("output_format").replaceChildren(...settings.formats.map((name) => new Option(name)));
}

export function rollDice() {
  $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
  $("seed").dispatchEvent(new Event("input", { bubbles: true }));
}
