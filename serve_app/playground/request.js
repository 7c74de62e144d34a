import { BASE, storedKey } from "./api.js";
import { base64Of } from "./pictures.js";

/** Larger pictures are read from their files instead of being copied into the code. */
const MAX_EMBEDDED_BYTES = 64 * 1024;
const QUALITY = 95; // RunPod's default, for OpenAI's dialect

/** Code that sends a request, and what to know before it is run.
 *  @param part a request of `plan` */
export async function codeOf(dialect, language, part, pictures) {
  if (!pictures.length) return { code: "", hint: "Add a picture first." };
  if (dialect === "openai" && Array.isArray(part.input.prompt)) return { code: "", hint: "OpenAI's API has no batches. Send one request for each picture." };
  if (dialect === "openai" && ("width" in part.input) !== ("height" in part.input)) return { code: "", hint: "OpenAI's API needs both width and height." };
  const isEmbedded = pictures.reduce((sum, picture) => sum + picture.blob.size, 0) <= MAX_EMBEDDED_BYTES;
  const sources = await Promise.all(pictures.map(async ({ blob, name }) => ({ name, type: blob.type || "image/png", base64: isEmbedded ? await base64Of(blob) : null })));
  const code = WRITERS[`${dialect} ${language}`](sources, part.input, storedKey() ?? "any");
  const packages = { "python runpod": "pip install runpod", "python openai": "pip install openai", "javascript runpod": "npm install runpod-sdk", "javascript openai": "npm install openai" };
  const hints = [
    language === "curl" ? "Needs curl and jq." : `Needs ${packages[`${language} ${dialect}`]}.${language === "javascript" ? " Save it as edit.mjs." : ""}`,
    isEmbedded ? "The picture is in the code." : `Run it in the folder of ${pictures.map((each) => each.name).join(", ")}.`,
    storedKey() ? "The code contains your key." : "",
  ];
  return { code, hint: hints.filter(Boolean).join(" ") };
}

const extension = (input) => ({ jpeg: "jpg" })[input.output_format] ?? input.output_format ?? "png";
const without = (object, ...names) => Object.fromEntries(Object.entries(object).filter(([name]) => !names.includes(name)));

/** The fields of a RunPod input under OpenAI's names. */
function openaiFields(input) {
  const fields = without(input, "width", "height");
  if ("width" in input) fields.size = `${input.width}x${input.height}`;
  if ("output_format" in input && input.output_format !== "png") fields.output_compression = QUALITY;
  return fields;
}

/** A JSON body for a shell's here document, and the here document's quoted name. Files are read by the shell. */
function shellBody(sources, bodyOf) {
  if (sources[0].base64 !== null) return ["'JSON'", JSON.stringify(bodyOf(sources.map((each) => each.base64)))];
  const marks = sources.map((_, index) => `@@${index}@@`);
  const text = JSON.stringify(bodyOf(marks)).replace(/[\\$`]/g, "\\$&");
  return ["JSON", marks.reduce((body, mark, index) => body.replace(mark, () => `$(base64 < '${sources[index].name.replaceAll("'", "'\\''")}' | tr -d '\\n')`), text)];
}

function curl(path, sources, bodyOf, key, read, input) {
  const [name, body] = shellBody(sources, bodyOf);
  const type = extension(input);
  return `curl -s '${BASE}${path}' -H 'Authorization: Bearer ${key.replaceAll("'", "'\\''")}' \\
  -H 'Content-Type: application/json' -d @- <<${name} |
${body}
JSON
  jq -r '${read}' | (n=0; while read -r picture; do
    n=$((n + 1)); printf %s "$picture" | base64 --decode > "output-$n.${type}"
  done)
`;
}

const runpodInput = (pictures, input) => ({ ...(pictures.length === 1 ? { image: pictures[0] } : { images: pictures }), ...input });

/** A value as Python writes it; a function's result is put in as it is. */
function python(value) {
  if (typeof value === "function") return value();
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value !== null && typeof value === "object") return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(", ")}}`;
  if (typeof value === "boolean") return value ? "True" : "False";
  return value === null ? "None" : JSON.stringify(value);
}

function javascript(value) {
  if (typeof value === "function") return value();
  if (Array.isArray(value)) return `[${value.map(javascript).join(", ")}]`;
  if (value !== null && typeof value === "object") return `{ ${Object.entries(value).map(([name, each]) => `${name}: ${javascript(each)}`).join(", ")} }`;
  return JSON.stringify(value);
}

const json = JSON.stringify;
const asForm = (value) => (Array.isArray(value) ? json(value) : value);
const pythonBytes = (source) => () => (source.base64 === null ? `open(${json(source.name)}, "rb").read()` : `base64.b64decode("${source.base64}")`);
const pythonText = (source) => () => (source.base64 === null ? `base64.b64encode(open(${json(source.name)}, "rb").read()).decode()` : json(source.base64));
const scriptText = (source) => () => (source.base64 === null ? `readFileSync(${json(source.name)}, "base64")` : json(source.base64));

const WRITERS = {
  "runpod curl": (sources, input, key) => curl("runsync?wait=300000", sources, (pictures) => ({ input: runpodInput(pictures, input) }), key, ".output.images[]", input),
  "openai curl": (sources, input, key) =>
    curl("v1/images/edits", sources, (pictures) => ({ image: pictures, ...openaiFields(input) }), key, ".data[].b64_json", input),
  "runpod python": (sources, input, key) => `import base64

import runpod

runpod.api_key = ${json(key)}
runpod.endpoint_url_base = "${BASE}v2"
fields = ${python(runpodInput(sources.map(pythonText), input))}
output = runpod.Endpoint("any").run_sync({"input": fields}, timeout=600)
for number, picture in enumerate(output["images"], 1):
    with open(f"output-{number}.${extension(input)}", "wb") as file:
        file.write(base64.b64decode(picture))
`,
  "openai python": (sources, input, key) => {
    const fields = openaiFields(input);
    const extra = Object.fromEntries(Object.entries(without(fields, "prompt")).map(([name, value]) => [name, asForm(value)]));
    return `import base64

from openai import OpenAI

client = OpenAI(api_key=${json(key)}, base_url="${BASE}v1")
answer = client.images.edit(
    image=${python(sources.map(pythonBytes))},
    prompt=${python(fields.prompt)},
    extra_body=${python(extra)},
)
for number, picture in enumerate(answer.data, 1):
    with open(f"output-{number}.${extension(input)}", "wb") as file:
        file.write(base64.b64decode(picture.b64_json))
`;
  },
  "runpod javascript": (sources, input, key) => `import { readFileSync, writeFileSync } from "node:fs";
import runpodSdk from "runpod-sdk";

const endpoint = runpodSdk(${json(key)}, { baseUrl: "${BASE}v2" }).endpoint("any");
const input = ${javascript(runpodInput(sources.map(scriptText), input))};
const { output } = await endpoint.runSync({ input }, 300000);
output.images.forEach((picture, index) => writeFileSync(\`output-\${index + 1}.${extension(input)}\`, picture, "base64"));
`,
  "openai javascript": (sources, input, key) => {
    const fields = openaiFields(input);
    const shown = Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, asForm(value)]));
    const files = sources.map((source) => () => `await toFile(Buffer.from(${scriptText(source)()}, "base64"), ${json(source.name)}, { type: ${json(source.type)} })`);
    return `import { readFileSync, writeFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ apiKey: ${json(key)}, baseURL: "${BASE}v1" });
const image = ${javascript(files)};
const answer = await client.images.edit({ image, ...${javascript(shown)} });
answer.data.forEach((picture, index) => writeFileSync(\`output-\${index + 1}.${extension(input)}\`, picture.b64_json, "base64"));
`;
  },
};
