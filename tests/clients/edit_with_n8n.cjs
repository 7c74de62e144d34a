// n8n's OpenAI node: `node edit_with_n8n.cjs NODES ADDRESS KEY MODEL PICTURE` lists the models that it offers, then
// edits with one of them and prints the picture in base64.
// NODES is the folder `dist` of n8n-nodes-langchain. `context` is what n8n gives to a node; `requestWithAuthentication`
// does as n8n-core and the credentials of kind OpenAI do.
const Module = require("node:module");
const { readFileSync } = require("node:fs");
const axios = require("axios");
const formData = require("form-data");

const [nodes, address, apiKey, modelId, picture] = process.argv.slice(2);

const others = {
  "form-data": formData,
  "n8n-workflow": { updateDisplayOptions: (_, properties) => properties },
  "@n8n/ai-utilities/model-discovery": {},
};
const load = Module._load;
Module._load = (name, ...rest) => others[name] ?? load(name, ...rest);
const { execute } = require(`${nodes}/nodes/vendors/OpenAi/v2/actions/image/edit.operation.js`);
const { imageGenerateModelSearch } = require(`${nodes}/nodes/vendors/OpenAi/methods/listSearch.js`);

const parameters = {
  modelId,
  prompt: "<sks> right side view eye-level shot medium shot make it sunset",
  images: { values: [{ binaryPropertyName: "data" }] },
  size: "256x256",
  options: {},
};
const context = {
  getNode: () => ({ typeVersion: 2.3 }),
  getNodeParameter(name, _, fallback) {
    const value = parameters[name] ?? fallback;
    if (value === undefined) throw new Error(`Could not get parameter ${name}`);
    return value;
  },
  getCredentials: async () => ({ apiKey, url: `${address}/v1` }),
  helpers: {
    assertBinaryData: () => ({ fileName: "photo.png", mimeType: "image/png" }),
    getBinaryDataBuffer: async () => readFileSync(picture),
    binaryToBuffer: async (content) => content,
    prepareBinaryData: async (content) => ({ data: content.toString("base64") }),
    requestWithAuthentication: async (_, { uri, method, headers, formData: data }) =>
      (await axios({ url: uri, method, data, headers: { ...headers, Authorization: `Bearer ${apiKey}`, "OpenAI-Organization": "" } })).data,
  },
};

(async () => {
  const { results } = await imageGenerateModelSearch.call(context);
  console.log(results.map(({ value }) => value).join(" "));
  const [{ binary }] = await execute.call(context, 0);
  console.log(binary.data.data);
})();
