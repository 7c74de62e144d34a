// Loads the page's other files once the browser has painted it: they take time on the same processor.

function load() {
  for (const link of document.querySelectorAll("link[rel=later]")) link.rel = link.as ? "preload" : "modulepreload";
  import("./main.js");
}

requestAnimationFrame(() => setTimeout(load));
