import { arrow, el } from "./dom.js";
import { urlOf } from "./pictures.js";

const FRAME_MS = 350;
const PX_PER_VIEW = 36;

/** A turntable: the pictures of several poses, turned by dragging, keys, the wheel and a button.
 *  @param views `{pose, blob, words}`, at least one for each azimuth
 *  @param onTurn called with the index of the view that is shown */
export class Turntable {
  constructor(views, onTurn) {
    this.views = views;
    this.onTurn = onTurn;
    this.axes = Object.fromEntries(["azimuth", "elevation", "distance"].map((name) => [name, [...new Set(views.map(({ pose }) => pose[name]))].sort((a, b) => a - b)]));
    this.index = 0;
    this.timer = null;
    this.grip = null;
    this.images = views.map(({ blob }) => el("img", { src: urlOf(blob), alt: "", draggable: "false" }));
    this.stage = el("div", {
      class: "turntable", role: "slider", tabindex: 0, "aria-label": "Turntable", "aria-valuemin": 0, "aria-valuemax": 315,
      onkeydown: (event) => this.press(event),
      onpointerdown: (event) => this.grab(event),
      onpointermove: (event) => this.drag(event),
      onpointerup: () => (this.grip = null),
      onpointercancel: () => (this.grip = null),
    }, ...this.images);
    if (this.axes.distance.length > 1) {
      this.stage.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.turn("distance", Math.sign(event.deltaY));
      }, { passive: false });
    }
    this.button = el("button", { type: "button", onclick: () => this.play(this.timer === null) }, "Play");
    const more = [this.axes.elevation.length > 1 && "up and down for the height", this.axes.distance.length > 1 && "the wheel, + and - for the distance"];
    this.hint = el("span", { class: "hint" }, ["Drag or use the arrow keys", ...more.filter(Boolean)].join("; "));
    this.node = el("div", { class: "turn" }, this.stage, el("div", { class: "bar" }, this.button, this.hint));
    this.show(0);
  }

  show(index) {
    this.images[this.index].classList.remove("on");
    this.index = index;
    this.images[index].classList.add("on");
    this.stage.setAttribute("aria-valuenow", this.views[index].pose.azimuth);
    this.stage.setAttribute("aria-valuetext", this.views[index].words);
    this.onTurn(index);
  }

  /** Go on along an axis; around the picture there is no end. */
  turn(axis, by) {
    const [values, pose] = [this.axes[axis], this.views[this.index].pose];
    const next = values.indexOf(pose[axis]) + by;
    const kept = axis === "azimuth" ? (next + values.length) % values.length : Math.max(0, Math.min(values.length - 1, next));
    const wanted = { ...pose, [axis]: values[kept] };
    this.show(this.views.findIndex(({ pose: each }) => Object.keys(wanted).every((name) => each[name] === wanted[name])));
  }

  press(event) {
    const move = arrow(event);
    const zoom = { "+": -1, "=": -1, "-": 1 }[event.key];
    if (move) this.turn(move[0] ? "azimuth" : "elevation", move[0] || move[1]);
    else if (zoom) this.turn("distance", zoom);
    else if (event.key === " ") this.play(this.timer === null);
    else return;
    event.preventDefault();
  }

  grab(event) {
    this.play(false);
    this.stage.setPointerCapture(event.pointerId);
    this.grip = { x: event.clientX, y: event.clientY };
  }

  /** To drag the things to the right is to walk to the left. */
  drag(event) {
    if (this.grip === null) return;
    const across = Math.trunc((event.clientX - this.grip.x) / PX_PER_VIEW);
    const down = Math.trunc((event.clientY - this.grip.y) / (PX_PER_VIEW * 1.5));
    if (across) {
      this.grip.x = event.clientX;
      this.turn("azimuth", -across % this.axes.azimuth.length);
    }
    if (down) {
      this.grip.y = event.clientY;
      this.turn("elevation", Math.sign(down));
    }
  }

  play(isOn) {
    clearInterval(this.timer);
    this.timer = isOn ? setInterval(() => (this.stage.isConnected ? this.turn("azimuth", 1) : this.play(false)), FRAME_MS) : null;
    this.button.textContent = isOn ? "Stop" : "Play";
  }

  /** The pictures of one round at the height and distance that are shown, by azimuth. */
  get round() {
    const { elevation, distance } = this.views[this.index].pose;
    return this.views.filter(({ pose }) => pose.elevation === elevation && pose.distance === distance).sort((a, b) => a.pose.azimuth - b.pose.azimuth);
  }
}

export { FRAME_MS };
