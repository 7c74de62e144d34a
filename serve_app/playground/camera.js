import { $, arrow, el } from "./dom.js";

// Where the drawing is seen from: a little to the right of the front, and from above. Parallel projection.
const YAW = (-25 * Math.PI) / 180;
const PITCH = (30 * Math.PI) / 180;
const [SIN_Y, COS_Y, SIN_P, COS_P] = [Math.sin(YAW), Math.cos(YAW), Math.sin(PITCH), Math.cos(PITCH)];
const [WIDTH, HEIGHT] = [360, 258];
const [CENTRE_X, CENTRE_Y, SCALE] = [180, 136, 96];
// How far from the centre, in units of SCALE, the handles move: apart, also where all three point to the front.
const RING = 1.5;
const ARC = 1.05;
const RAY = [[0.6, 0.28], [1, 0.56], [1.8, 1.3]];
const PICTURE = 0.9; // longer side
const NAMES = { azimuth: "Side", elevation: "Height", distance: "Distance" };
const HANDLES = Object.keys(NAMES);
const NEUTRAL = { azimuth: 0, elevation: 0, distance: 1 };

function project([x, y, z]) {
  const across = x * COS_Y + z * SIN_Y;
  const depth = z * COS_Y - x * SIN_Y;
  return [CENTRE_X + SCALE * across, CENTRE_Y - SCALE * (y * COS_P - depth * SIN_P)];
}

/** A point on the sphere; azimuth 90 is the viewer's right. */
function onSphere(azimuth, elevation, radius) {
  const [a, e] = [(azimuth * Math.PI) / 180, (elevation * Math.PI) / 180];
  return [radius * Math.sin(a) * Math.cos(e), radius * Math.sin(e), radius * Math.cos(a) * Math.cos(e)];
}

function radiusOf(distance) {
  const [near, far] = distance <= RAY[1][0] ? [RAY[0], RAY[1]] : [RAY[1], RAY[2]];
  return near[1] + ((distance - near[0]) / (far[0] - near[0])) * (far[1] - near[1]);
}

const HANDLE_AT = {
  azimuth: (pose) => onSphere(pose.azimuth, 0, RING),
  elevation: (pose) => onSphere(pose.azimuth, pose.elevation, ARC),
  distance: (pose) => onSphere(pose.azimuth, pose.elevation, radiusOf(pose.distance)),
};
// The values that a handle passes while it is dragged, besides those that it snaps to.
const TRAVEL = {
  azimuth: Array.from({ length: 120 }, (_, i) => i * 3),
  elevation: Array.from({ length: 61 }, (_, i) => -30 + i * 1.5),
  distance: Array.from({ length: 61 }, (_, i) => 0.6 + i * 0.02),
};

const points = (list) => list.map((point) => project(point).map((value) => value.toFixed(1)).join(",")).join(" ");

/** The sphere and the three lists beside it, which show one pose. Emits `change` on the sphere. */
export class Camera {
  /** @param poses the trained poses with their words, as the service lists them */
  constructor(poses) {
    this.poses = poses;
    this.pose = null;
    this.svg = $("sphere");
    this.values = Object.fromEntries(HANDLES.map((name) => [name, [...new Set(poses.map((pose) => pose[name]))].sort((a, b) => a - b)]));
    this.free = { ...NEUTRAL };
    this.dragged = null;
    this.fillLists();
    this.build();
    this.listen();
    this.show();
  }

  /** The words of a pose, as the service puts them in front of the prompt. */
  words(pose) {
    return this.poses.find((each) => HANDLES.every((name) => each[name] === pose[name])).words;
  }

  set(pose) {
    this.pose = pose === null ? null : { ...pose };
    this.free = { ...(pose ?? NEUTRAL) };
    this.show();
    this.svg.dispatchEvent(new Event("change"));
  }

  /** Show a picture in the middle; null: an empty frame. */
  showPicture(picture) {
    const ratio = picture?.width ? picture.width / picture.height : 1;
    const [width, height] = ratio > 1 ? [PICTURE, PICTURE / ratio] : [PICTURE * ratio, PICTURE];
    const corner = project([-width / 2, height / 2, 0]);
    const [right, down] = [project([width / 2, height / 2, 0]), project([-width / 2, -height / 2, 0])];
    const matrix = [right[0] - corner[0], right[1] - corner[1], down[0] - corner[0], down[1] - corner[1], ...corner];
    for (const node of [this.image, this.frame]) node.setAttribute("transform", `matrix(${matrix.map((value) => value.toFixed(3)).join(" ")})`);
    if (picture?.url && picture.width) this.image.setAttribute("href", picture.url);
    else this.image.removeAttribute("href");
  }

  /** How a value is called, in the words of the poses. */
  label(name, value) {
    const pose = { ...NEUTRAL, [name]: value };
    const other = this.poses.find((each) => HANDLES.every((each_) => each_ === name || each[each_] === NEUTRAL[each_]) && each[name] !== value);
    return difference(this.words(pose), other.words);
  }

  fillLists() {
    for (const name of HANDLES) {
      $(name).append(el("option", { value: "" }, "as it is"), ...this.values[name].map((value) => el("option", { value }, this.label(name, value))));
      $(name).addEventListener("change", () => {
        if ($(name).value === "") this.set(null);
        else this.set({ ...(this.pose ?? NEUTRAL), [name]: Number($(name).value) });
      });
    }
    $("unset").addEventListener("click", () => {
      this.set(null);
      $("azimuth").focus();
    });
  }

  build() {
    const ring = Array.from({ length: 73 }, (_, i) => onSphere(i * 5, 0, RING));
    const sides = [["front", 0], ["right", 90], ["back", 180], ["left", 270]].map(([text, azimuth]) => {
      const [x, y] = project(onSphere(azimuth, 0, RING + 0.36));
      return el("text", { x, y: y + 4, class: "side-name" }, text);
    });
    this.arc = el("polyline", { class: "height line" });
    this.ray = el("line", { class: "distance line" });
    this.frame = el("rect", { width: 1, height: 1, class: "picture-frame" });
    this.image = el("image", { width: 1, height: 1, preserveAspectRatio: "none" });
    this.ticks = el("g", { class: "ticks" });
    this.handles = Object.fromEntries(HANDLES.map((name) => [name, this.handle(name)]));
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.append(
      el("circle", { cx: CENTRE_X, cy: CENTRE_Y, r: ARC * SCALE, class: "ball" }),
      el("polyline", { points: points(ring), class: "side line" }),
      el("g", { "aria-hidden": "true" }, ...sides),
      this.frame, this.image, this.arc, this.ray, this.ticks,
      ...HANDLES.map((name) => this.handles[name]),
    );
    this.showPicture(null);
  }

  handle(name) {
    const values = this.values[name];
    const shape = name === "distance" ? [el("path", { d: "M-11-7h13v14h-13zM2-2l8-5v14l-8-5z" })] : [el("circle", { r: 8 })];
    return el("g", {
      class: `handle ${{ azimuth: "side", elevation: "height", distance: "distance" }[name]}`, role: "slider", tabindex: 0, "aria-label": `${NAMES[name]} of the camera`,
      "aria-valuemin": values[0], "aria-valuemax": values.at(-1), "data-name": name,
      onkeydown: (event) => this.press(event, name),
    }, el("circle", { r: 14, class: "focus" }), ...shape);
  }

  listen() {
    this.svg.addEventListener("pointerdown", (event) => this.grab(event));
    this.svg.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) this.svg.addEventListener(name, () => this.drop());
    this.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.step("distance", Math.sign(event.deltaY));
    }, { passive: false });
  }

  press(event, name) {
    const move = arrow(event);
    const end = { Home: 0, End: this.values[name].length - 1 }[event.key];
    if (!move && end === undefined) return;
    event.preventDefault();
    if (end !== undefined) this.set({ ...(this.pose ?? NEUTRAL), [name]: this.values[name][end] });
    else this.step(name, move[0] + move[1]);
  }

  step(name, by) {
    const values = this.values[name];
    const pose = this.pose ?? NEUTRAL;
    const index = values.indexOf(pose[name]) + by;
    const wrapped = name === "azimuth" ? (index + values.length) % values.length : Math.max(0, Math.min(values.length - 1, index));
    this.set({ ...pose, [name]: values[wrapped] });
  }

  at(event) {
    const box = this.svg.getBoundingClientRect();
    const scale = Math.min(box.width / WIDTH, box.height / HEIGHT);
    return [(event.clientX - box.left - (box.width - WIDTH * scale) / 2) / scale, (event.clientY - box.top - (box.height - HEIGHT * scale) / 2) / scale];
  }

  grab(event) {
    const [x, y] = this.at(event);
    const near = HANDLES.map((name) => ({ name, gap: gap(project(HANDLE_AT[name](this.free)), x, y) })).sort((a, b) => a.gap - b.gap)[0];
    if (near.gap > 26) return;
    event.preventDefault();
    this.svg.setPointerCapture(event.pointerId);
    this.dragged = near.name;
    this.svg.classList.add("dragging");
    this.handles[near.name].focus({ preventScroll: true });
    if (this.pose === null) this.moveTo(NEUTRAL[near.name]);
  }

  drag(event) {
    if (this.dragged === null) return;
    const [x, y] = this.at(event);
    const name = this.dragged;
    const places = TRAVEL[name].map((value) => [gap(project(HANDLE_AT[name]({ ...this.free, [name]: value })), x, y), value]);
    this.moveTo(places.reduce((best, each) => (each[0] < best[0] ? each : best))[1]);
  }

  moveTo(value) {
    const name = this.dragged;
    this.free[name] = value;
    const around = (listed) => (name === "azimuth" ? Math.min(Math.abs(listed - value), 360 - Math.abs(listed - value)) : Math.abs(listed - value));
    const nearest = this.values[name].reduce((best, listed) => (around(listed) < around(best) ? listed : best));
    const before = this.pose;
    this.pose = { ...(this.pose ?? NEUTRAL), [name]: nearest };
    this.show();
    if (before?.[name] !== nearest) this.svg.dispatchEvent(new Event("change"));
  }

  drop() {
    if (this.dragged === null) return;
    this.dragged = null;
    this.svg.classList.remove("dragging");
    this.free = { ...this.pose };
    this.show();
  }

  show() {
    const { free, pose } = this;
    this.svg.classList.toggle("unset", pose === null);
    this.arc.setAttribute("points", points(Array.from({ length: 19 }, (_, i) => onSphere(free.azimuth, -30 + i * 5, ARC))));
    const [from, to] = [project([0, 0, 0]), project(onSphere(free.azimuth, free.elevation, RAY[2][1]))];
    for (const [name, value] of [["x1", from[0]], ["y1", from[1]], ["x2", to[0]], ["y2", to[1]]]) this.ray.setAttribute(name, value.toFixed(1));
    this.showTicks(free);
    for (const name of HANDLES) this.showHandle(name, free, pose);
    $("unset").disabled = pose === null;
  }

  showTicks(free) {
    const places = HANDLES.flatMap((name) => this.values[name].map((value) => project(HANDLE_AT[name]({ ...free, [name]: value }))));
    while (this.ticks.children.length < places.length) this.ticks.append(el("circle", { r: 2.2 }));
    places.forEach(([x, y], index) => this.ticks.children[index].setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`));
  }

  showHandle(name, free, pose) {
    const [x, y] = project(HANDLE_AT[name](free));
    const [centreX, centreY] = project([0, 0, 0]);
    const turn = name === "distance" ? ` rotate(${((Math.atan2(centreY - y, centreX - x) * 180) / Math.PI).toFixed(1)})` : "";
    const node = this.handles[name];
    node.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})${turn}`);
    node.setAttribute("aria-valuenow", (pose ?? NEUTRAL)[name]);
    node.setAttribute("aria-valuetext", pose === null ? "as it is" : this.label(name, pose[name]));
    $(name).value = pose === null ? "" : String(pose[name]);
  }
}

const gap = ([x, y], toX, toY) => Math.hypot(x - toX, y - toY);

/** The words of one text that another lacks at its place. */
function difference(words, other) {
  const [mine, theirs] = [words.split(" "), other.split(" ")];
  let start = 0;
  while (mine[start] === theirs[start]) start += 1;
  let end = 0;
  while (end < mine.length - start && mine.at(-1 - end) === theirs.at(-1 - end)) end += 1;
  return mine.slice(start, mine.length - end).join(" ");
}
