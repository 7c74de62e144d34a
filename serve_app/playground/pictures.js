import { $, arrow, el, say } from "./dom.js";

const urls = new WeakMap();

/** An address for a blob, the same one each time. */
export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}

/** A file as a picture: its size in pixels is 0 where this browser cannot decode it; the service may. */
export async function pictureOf(blob, name) {
  const image = new Image();
  image.src = urlOf(blob);
  await image.decode().catch(() => {});
  return { blob, name, url: image.src, width: image.naturalWidth, height: image.naturalHeight };
}

/** The file's bytes in base64. */
export async function base64Of(blob) {
  const text = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  return text.slice(text.indexOf(",") + 1);
}

/** The pictures to edit, in order. Emits `change` on the list. */
export class Pictures {
  constructor() {
    this.list = [];
    this.tiles = $("tiles");
    this.listen();
  }

  async add(files) {
    const added = await Promise.all([...files].map((file) => pictureOf(file, file.name || "pasted.png")));
    this.set([...this.list, ...added]);
    say(`${this.list.length} picture${this.list.length === 1 ? "" : "s"}`);
  }

  set(list) {
    this.list = list;
    this.show();
    this.tiles.dispatchEvent(new Event("change"));
  }

  listen() {
    $("file").addEventListener("change", () => {
      this.add($("file").files);
      $("file").value = "";
    });
    for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, (event) => this.dragFiles(event));
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) this.add(files);
    });
    for (const button of document.querySelectorAll(".example")) {
      button.addEventListener("click", async () => {
        const blob = await (await fetch(`playground/${button.dataset.name}`)).blob();
        this.set([await pictureOf(blob, button.dataset.name)]);
        this.tiles.firstChild.focus(); // the examples may be hidden now
      });
    }
  }

  dragFiles(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("drop").classList.toggle("over", event.type === "dragover");
    if (event.type === "drop") this.add(event.dataTransfer.files);
  }

  move(from, to) {
    if (to < 0 || to >= this.list.length || from === to) return;
    const list = [...this.list];
    list.splice(to, 0, ...list.splice(from, 1));
    this.set(list);
    this.tiles.children[to].focus();
    say(`${list[to].name} is picture ${to + 1} now`);
  }

  show() {
    const many = this.list.length > 1;
    this.tiles.replaceChildren(...this.list.map((picture, index) => this.tile(picture, index, many)));
  }

  tile(picture, index, many) {
    const number = index + 1;
    const remove = () => {
      this.set(this.list.filter((each) => each !== picture));
      (this.tiles.children[Math.min(index, this.list.length - 1)] ?? $("file")).focus();
    };
    const shown = picture.width ? el("img", { src: picture.url, alt: "", draggable: "false" }) : el("span", { class: "unseen" }, "no preview");
    const press = (event) => {
      if (event.target !== event.currentTarget) return;
      const move = arrow(event);
      if (event.key === "Delete" || event.key === "Backspace") remove();
      else if (many && move) this.move(index, index + move[0] - move[1]);
      else return;
      event.preventDefault();
    };
    return el(
      "li",
      {
        class: "tile", tabindex: 0, draggable: many ? "true" : "false", title: picture.name, onkeydown: press,
        "aria-label": `Picture ${number}: ${picture.name}.${many ? " Arrow keys move it." : ""} Delete removes it.`,
        ondragstart: (event) => event.dataTransfer.setData("text/x-tile", String(index)),
        ondragover: (event) => event.dataTransfer.types.includes("text/x-tile") && event.preventDefault(),
        ondrop: (event) => {
          const from = event.dataTransfer.getData("text/x-tile");
          if (from !== "") this.move(Number(from), index);
        },
      },
      shown,
      el("span", { class: "number", "aria-hidden": "true" }, String(number)),
      many && el("button", { type: "button", class: "back", "aria-label": `Move picture ${number} forward`, disabled: index === 0, onclick: () => this.move(index, index - 1) }, "‹"),
      many && el("button", { type: "button", class: "on", "aria-label": `Move picture ${number} back`, disabled: number === this.list.length, onclick: () => this.move(index, index + 1) }, "›"),
      el("button", { type: "button", class: "remove", "aria-label": `Remove picture ${number}`, onclick: remove }, "×"),
    );
  }
}
