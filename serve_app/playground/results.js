import { $, el, say } from "./dom.js";
import { animation, save, zip } from "./download.js";
import { FRAME_MS, Turntable } from "./orbit.js";
import { urlOf } from "./pictures.js";

const EXTENSIONS = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp" };
const MIN_ANIMATION_PX = 256;
const MODES = { compare: "Compare", grid: "All pictures", turn: "Turntable" };

/** One edit on the stage: its progress, its pictures, and what can be done with them. */
export class Results {
  /** @param actions `useAsInput(blob, name)`, `sameSettings(record)`, `adopt(prompt)`, `words(pose)`, `retry(run)` */
  constructor(actions) {
    this.actions = actions;
    this.view = $("view");
    this.run = null;
    this.showEmpty();
  }

  showEmpty() {
    this.run = null;
    this.turntable = null;
    const steps = ["Add a picture.", "Move the camera around it, or choose an orbit, or write an instruction.", "Press Start."];
    this.view.replaceChildren(el("div", { class: "frame empty" }, el("ol", {}, ...steps.map((text) => el("li", {}, text)))));
  }

  /** Put an edit on the stage. */
  show(run) {
    this.run = run;
    this.index = 0;
    this.turntable = null;
    this.isOrbit = run.record.settings.views !== "one";
    this.mode = run.record.outputs.length === 1 ? "compare" : this.isOrbit && !run.isRunning && this.isWhole ? "turn" : "grid";
    this.build();
  }

  get isWhole() {
    return this.run.record.outputs.every(Boolean);
  }

  /** Show what has changed in an edit, if it is the one on the stage. */
  update(run) {
    if (run !== this.run) return;
    const isDone = this.wasRunning && !run.isRunning;
    if (isDone && this.isOrbit && this.isWhole) this.mode = "turn";
    if (isDone) this.build();
    else this.refresh();
    if (isDone) say(run.record.state === "COMPLETED" ? "The edit is done." : this.stateText());
  }

  inputOf(index) {
    const { inputs, settings } = this.run.record;
    return settings.use === "batch" && settings.views === "one" && inputs.length > 1 ? inputs[index] : inputs[0];
  }

  ratio() {
    const { settings } = this.run.record;
    const input = this.inputOf(this.index);
    const [width, height] = [Number(settings.width), Number(settings.height)];
    if (width > 0 && height > 0) return width / height;
    return input.width ? input.width / input.height : 1;
  }

  build() {
    const { record } = this.run;
    this.wasRunning = this.run.isRunning;
    this.state = el("span", { class: "state" });
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.cancel = el("button", { type: "button", id: "cancel", onclick: () => this.run.cancel() }, "Cancel");
    const modes = record.outputs.length === 1 ? [] : Object.keys(MODES).filter((mode) => mode !== "turn" || (this.isOrbit && this.isWhole));
    const tabs = el("div", { class: "tabs", role: "group", "aria-label": "Show" }, ...modes.map((mode) => el("button", { type: "button", "aria-pressed": String(mode === this.mode), onclick: () => this.switchTo(mode) }, MODES[mode])));
    this.body = el("div", { class: "body" });
    this.caption = el("p", { class: "caption" });
    this.notes = el("div", { class: "notes" });
    this.tools = el("div", { class: "bar tools" });
    this.problem = el("p", { class: "error", role: "alert" });
    this.body.style.setProperty("--ratio", this.ratio().toFixed(4));
    this.view.replaceChildren(
      el("div", { class: "bar head" }, this.state, this.bar, this.cancel, tabs), this.problem, this.body, this.caption, this.notes, this.tools,
    );
    this[`build_${this.mode}`]();
    this.refresh();
  }

  switchTo(mode) {
    this.mode = mode;
    this.build();
    this.view.querySelector("[aria-pressed=true]")?.focus();
  }

  select(index) {
    this.index = index;
    this.showCaption();
  }

  build_compare() {
    const before = this.inputOf(this.index);
    this.before = before.width ? el("img", { src: urlOf(before.blob), alt: "Before" }) : el("span", { class: "unseen" }, "no preview");
    this.after = el("img", { class: "after", alt: "After", hidden: true });
    const move = (event) => this.figure.style.setProperty("--at", `${event.target.value}%`);
    this.slider = el("input", { type: "range", min: 0, max: 100, value: 50, step: 1, "aria-label": "Part of the picture that shows the state before", oninput: move, disabled: true });
    this.figure = el("div", { class: "frame compare" }, this.before, this.after, this.slider, el("i", { class: "divider", "aria-hidden": "true" }));
    this.body.append(this.figure);
  }

  build_grid() {
    const { record } = this.run;
    this.cells = record.outputs.map((_, index) => {
      const label = record.poses[index] ? this.actions.words(record.poses[index]) : `Picture ${index + 1}`;
      const image = el("img", { alt: "", hidden: true });
      const text = el("span", { class: "count" });
      const open = () => {
        this.index = index;
        this.switchTo("compare");
      };
      return { image, text, node: el("button", { type: "button", class: "cell", "aria-label": label, title: label, disabled: true, onclick: open }, image, text) };
    });
    this.body.append(el("div", { class: `grid${record.outputs.length > 16 ? " many" : ""}` }, ...this.cells.map(({ node }) => node)));
  }

  build_turn() {
    const { record } = this.run;
    const views = record.outputs.map(({ blob }, index) => ({ blob, pose: record.poses[index], words: this.actions.words(record.poses[index]) }));
    this.turntable = new Turntable(views, (index) => this.select(index));
    this.turntable.stage.classList.add("frame");
    this.body.append(this.turntable.node);
  }

  refresh() {
    const { run } = this;
    const total = run.record.outputs.length;
    const isKnown = run.isRunning && (run.steps.size > 0 || run.numDone > 0);
    const begun = [...run.steps.values()].reduce((sum, each) => sum + each.step / each.num_steps, 0);
    this.bar.hidden = !run.isRunning;
    this.cancel.hidden = !run.isRunning;
    if (isKnown) this.bar.value = (run.numDone + begun * 0.95) / total;
    const text = this.stateText();
    if (this.state.textContent !== text) this.state.textContent = text;
    this.problem.textContent = run.record.error ?? "";
    if (this.mode === "compare") this.refreshCompare();
    if (this.mode === "grid") this.refreshGrid();
    this.showCaption();
    this.showTools();
  }

  stateText() {
    const { run } = this;
    const total = run.record.outputs.length;
    if (!run.isRunning) return { COMPLETED: total > 1 ? `${total} pictures` : "Done", FAILED: "Failed", CANCELLED: `Cancelled${run.numDone ? `, ${run.numDone} of ${total} pictures` : ""}` }[run.record.state];
    if (total > 1 && (run.numDone || run.steps.size)) return `${run.numDone} of ${total} pictures`;
    const step = run.steps.get(0);
    if (step) return step.paused ? "Paused: other edits go first" : `Step ${step.step} of ${step.num_steps}`;
    return run.place ? `Waiting at place ${run.place} in the queue` : "Sending";
  }

  refreshCompare() {
    const { run, index, figure } = this;
    const output = run.record.outputs[index];
    const preview = run.steps.get(index)?.preview;
    const source = output ? urlOf(output.blob) : preview ? `data:image/${run.record.settings.output_format};base64,${preview}` : null;
    if (source && this.after.src !== source) this.after.src = source;
    this.after.hidden = !source;
    this.slider.disabled = !source;
    figure.classList.toggle("ready", source !== null);
    figure.classList.toggle("working", run.isRunning && !output);
  }

  refreshGrid() {
    this.cells.forEach(({ image, text, node }, index) => {
      const output = this.run.record.outputs[index];
      if (output && image.hidden) {
        image.src = urlOf(output.blob);
        image.hidden = false;
      }
      node.disabled = !output;
      const step = this.run.steps.get(index);
      text.textContent = output ? "" : step ? `${step.step}/${step.num_steps}` : "";
    });
  }

  showCaption() {
    if (this.mode === "grid") this.caption.replaceChildren(el("span", { class: "hint" }, "Choose a picture to see it large beside the original."));
    else this.showPrompt();
    this.showRewrites();
  }

  showPrompt() {
    const output = this.run.record.outputs[this.index];
    const pose = this.run.record.poses[this.index];
    const prompt = output?.prompt ?? [pose ? this.actions.words(pose) : "", this.run.record.settings.prompt].filter(Boolean).join(" ");
    const loras = (this.run.record.settings.loras ?? []).map(({ name, weight }) => `, ${name}${weight.trim() && ` × ${weight}`}`).join("");
    this.caption.replaceChildren(el("q", {}, prompt), output ? ` seed ${output.seed}${loras}` : "");
  }

  showRewrites() {
    if (this.notes.childElementCount || this.run.isRunning) return;
    const seen = new Set();
    for (const { prompt: given, rewritten, reason } of this.run.record.rewrites) {
      if (seen.has(rewritten ?? reason)) continue;
      seen.add(rewritten ?? reason);
      if (rewritten == null) this.notes.append(el("p", {}, `Not rewritten: ${reason}`));
      else this.notes.append(el("p", {}, `“${given}” was rewritten as `, el("q", { class: "rewritten" }, rewritten), " ", el("button", { type: "button", class: "quiet adopt", onclick: () => this.actions.adopt(rewritten) }, "Use this text")));
    }
  }

  showTools() {
    const { record } = this.run;
    const done = record.outputs.filter(Boolean).length;
    const output = this.mode === "grid" ? null : record.outputs[this.index];
    const signature = `${done} ${Boolean(output)} ${this.mode} ${this.run.isRunning}`;
    if (this.tools.dataset.signature === signature) return;
    this.tools.dataset.signature = signature;
    const button = (text, onclick, id, title) => el("button", { type: "button", id, title, onclick }, text);
    this.tools.replaceChildren(
      ...[
        output && button("Download", () => this.download(), "download"),
        done > 1 && button("Download all", () => this.downloadAll(), "download-all", "All pictures in a zip archive"),
        this.mode === "turn" && button("Download orbit", () => this.downloadOrbit(), "download-orbit", "One round as an animated WebP picture"),
        output && button("Use as input", () => this.actions.useAsInput(record.outputs[this.index].blob, this.name(this.index)), "use-as-input"),
        !this.run.isRunning && button("Same settings", () => this.actions.sameSettings(record), "same-settings", "Put this edit's pictures and settings into the form"),
        !this.run.isRunning && record.state !== "COMPLETED" && button("Try again", () => this.actions.retry(this.run), "retry"),
      ].filter(Boolean),
    );
  }

  name(index) {
    const { poses, outputs } = this.run.record;
    const pose = poses[index];
    const end = EXTENSIONS[outputs[index].blob.type];
    const number = outputs.length > 1 ? `-${String(index + 1).padStart(2, "0")}` : "";
    return `edit${number}${pose ? `-${pose.azimuth}-${pose.elevation}-${pose.distance}` : ""}.${end}`;
  }

  download() {
    save(this.run.record.outputs[this.index].blob, this.name(this.index));
  }

  async downloadAll() {
    const files = this.run.record.outputs.map((output, index) => output && { blob: output.blob, name: this.name(index) });
    save(await zip(files.filter(Boolean)), "edits.zip");
  }

  async downloadOrbit() {
    const file = await animation(this.turntable.round.map(({ blob }) => blob), FRAME_MS, MIN_ANIMATION_PX);
    if (file) save(file, "orbit.webp");
    else this.problem.textContent = "This browser cannot write WebP. Download all pictures instead.";
  }
}
