import { call, open } from "./api.js";
import { $, el } from "./dom.js";

let schemas = {};

const resolved = (schema) => (schema?.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema) ?? {};

/** A schema's type in a few words. */
function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.filter((each) => each.type !== "null").map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(", ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  return [schema.format === "binary" ? "file" : schema.type ?? "any", schema.pattern && `matching ${schema.pattern}`].filter(Boolean).join(" ");
}

function bounds(schema) {
  const words = { minimum: "at least", maximum: "at most", minLength: "at least so many characters:", maxLength: "at most so many characters:" };
  const found = [schema, ...(schema.anyOf ?? [])].flatMap((each) => Object.keys(words).filter((name) => name in each).map((name) => `${words[name]} ${each[name]}`));
  return found.length ? ` (${found.join(", ")})` : "";
}

function table(rows, head) {
  const line = (cells, tag) => el("tr", {}, ...cells.map((cell) => el(tag, tag === "th" ? { scope: "col" } : {}, cell)));
  return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": head[0] }, el("table", {}, el("thead", {}, line(head, "th")), el("tbody", {}, ...rows.map((row) => line(row, "td")))));
}

function fields(schema, seen = []) {
  const { properties = {}, required = [] } = resolved(schema);
  const rows = Object.entries(properties).map(([name, each]) => [el("code", {}, name), `${typeOf(each)}${bounds(each)}${required.includes(name) ? ", required" : ""}`, each.description ?? resolved(each).description ?? ""]);
  const inner = Object.values(properties).flatMap((each) => [each, each.items, ...(each.anyOf ?? []), ...(each.anyOf ?? []).map((one) => one.items), ...(each.items?.oneOf ?? []), ...(each.oneOf ?? [])]);
  const names = [...new Set(inner.filter((each) => each?.$ref).map((each) => each.$ref))].filter((name) => !seen.includes(name));
  const parts = names.flatMap((name) => {
    const below = resolved({ $ref: name });
    return below.properties ? [el("h3", {}, name.split("/").at(-1)), ...fields({ $ref: name }, [...seen, name])] : [];
  });
  return rows.length ? [table(rows, ["Field", "Type", "Meaning"]), ...parts] : parts;
}

function examples(content) {
  const listed = Object.entries(content.examples ?? {});
  if (!listed.length) return [];
  return [el("details", {}, el("summary", {}, "Examples"), ...listed.flatMap(([name, { summary, value }]) => [el("h3", {}, summary ?? name), el("pre", { tabindex: 0 }, JSON.stringify(value, null, 2))]))];
}

function route(method, path, operation) {
  const id = operation.operationId;
  const parameters = (operation.parameters ?? []).map((each) => [el("code", {}, each.name), `${typeOf(each.schema)}${bounds(each.schema)}, in the ${each.in}`, each.description ?? each.schema.description ?? ""]);
  const bodies = Object.entries(operation.requestBody?.content ?? {}).flatMap(([type, content]) => [el("h3", {}, `Body, ${type}`), ...fields(content.schema), ...examples(content)]);
  const answers = Object.entries(operation.responses).map(([status, each]) => [status, each.description, Object.values(each.content ?? {}).map((content) => typeOf(content.schema ?? {})).join(" or ")]);
  const success = Object.values(operation.responses["200"]?.content ?? {})[0]?.schema;
  return el(
    "section", { class: "card route", id, "aria-label": `${method} ${path}` },
    el("h2", {}, el("span", { class: "method" }, method), el("code", {}, path)),
    el("p", {}, operation.description ?? operation.summary ?? ""),
    ...(parameters.length ? [el("h3", {}, "Parameters"), table(parameters, ["Parameter", "Type", "Meaning"])] : []),
    ...bodies,
    el("h3", {}, "Answers"), table(answers, ["Status", "Meaning", "Body"]),
    ...(success ? [el("details", {}, el("summary", {}, "Fields of the answer"), ...fields(success))] : []),
  );
}

function show(document_) {
  schemas = document_.components.schemas;
  const listed = Object.entries(document_.paths).flatMap(([path, operations]) => Object.entries(operations).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));
  // The routes under /v2/{endpoint_id} are the same.
  const shown = listed.filter(({ path }) => !path.startsWith("/v2/"));
  $("service").textContent = `${document_.info.title} ${document_.info.version}. RunPod's routes are also under /v2/{endpoint_id}, OpenAI's under /v2/{endpoint_id}/openai.`;
  const cards = shown.map(({ method, path, operation }) => route(method, path, operation));
  const links = shown.map(({ method, path, operation }) => el("a", { href: `#${operation.operationId}` }, `${method} ${path}`));
  $("routes").replaceChildren(...cards);
  $("index").replaceChildren(...links);
  $("filter").addEventListener("input", () => {
    const text = $("filter").value.toLowerCase();
    cards.forEach((card, index) => (card.hidden = links[index].hidden = !card.textContent.toLowerCase().includes(text)));
  });
}

$("home").hidden = !(await open()).has_playground;
try {
  show(await call("openapi.json"));
} catch (problem) {
  $("service").textContent = problem.message;
}
document.documentElement.dataset.ready = "true";
