/** The element with an id. */
export const $ = (id) => document.getElementById(id);

/** An element with attributes, properties (names that begin with a dot), listeners (with `on`) and children. */
export function el(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "circle", "line", "polyline", "polygon", "image", "text", "rect"].includes(tag);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith(".")) node[name.slice(1)] = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/** Announce a text to screen readers. */
export function say(text) {
  $("say").textContent = text;
}

/** Whether a keyboard event is a plain arrow key: [dx, dy], else null. */
export function arrow(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  return { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? null;
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
