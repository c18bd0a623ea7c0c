/** A conversation as JSON, and its last request as programs that repeat it. The key is read from the environment. */

import { addressOf } from "./api.js";
import { offeredTools } from "./conversation.js";
import { button, byId, copy, el } from "./dom.js";
import { SURFACES } from "./surfaces.js";

const KEY = "TOOLWIRE_API_KEY";
const FORMS = [["json", "JSON", "conversation.json"], ["curl", "curl", "conversation.sh"], ["python", "Python", "conversation.py"], ["javascript", "JavaScript", "conversation.mjs"]];

/** The request that wrote the last reply, or would write the next one. */
export function lastRequest(conversation, model) {
  const last = conversation.turns.findLastIndex((turn) => turn.role === "assistant");
  const turns = last < 0 ? conversation.turns : conversation.turns.slice(0, last);
  const surface = SURFACES[conversation.options.surface];
  const { system, options } = conversation;
  return { path: surface.path, body: surface.build({ system, options, turns, tools: offeredTools(conversation) }, model) };
}

export function asCurl({ path, body }) {
  return `curl -N ${addressOf(path)} \\
  -H "Authorization: Bearer $${KEY}" -H 'Content-Type: application/json' --data-binary @- <<'END_OF_REQUEST'
${JSON.stringify(body, null, 2)}
END_OF_REQUEST
`;
}

/** Python that prints what the model writes and calls. It needs the openai SDK, or anthropic's for Messages. */
export function asPython({ path, body }) {
  const request = pythonLiteral(body);
  const head = `import os\n\n`;
  if (path.endsWith("/messages")) {
    return `${head}from anthropic import Anthropic

client = Anthropic(base_url="${addressOf("/").replace(/\/$/, "")}", api_key=os.environ.get("${KEY}", "none"))
request = ${request}
extra = {name: request.pop(name) for name in ("toolwire", "enable_thinking") if name in request}
for event in client.messages.create(**request, extra_body=extra):
    print(event.model_dump_json())
`;
  }
  const method = path.endsWith("/responses") ? "responses" : "chat.completions";
  return `${head}from openai import OpenAI

client = OpenAI(base_url="${addressOf("/v1")}", api_key=os.environ.get("${KEY}", "none"))
request = ${request}
extra = {name: request.pop(name) for name in ("toolwire", "enable_thinking") if name in request}
for event in client.${method}.create(**request, extra_body=extra):
    print(event.model_dump_json(exclude_unset=True))
`;
}

/** JavaScript for Node or a browser, without a package. */
export function asJavaScript({ path, body }) {
  return `const response = await fetch(${JSON.stringify(addressOf(path))}, {
  method: "POST",
  headers: { "content-type": "application/json", authorization: \`Bearer \${globalThis.process?.env.${KEY} ?? "none"}\` },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
if (!response.ok) throw new Error(await response.text());
const decoder = new TextDecoder();
for await (const bytes of response.body) console.log(decoder.decode(bytes, { stream: true }));
`;
}

/** A JSON value as Python writes it. */
export function pythonLiteral(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Array.isArray(value)
    ? value.map((one) => pythonLiteral(one, inner))
    : Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${pythonLiteral(one, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return entries.length ? `${open}\n${inner}${entries.join(`,\n${inner}`)},\n${indent}${close}` : open + close;
}

/** The dialog that shows and saves them, and takes a conversation back. */
export function setUpExport(conversation, loop) {
  const dialog = byId("export-dialog");
  const text = byId("export-text");
  const texts = {
    json: () => JSON.stringify(conversation, null, 2),
    curl: () => asCurl(lastRequest(conversation, loop.model)),
    python: () => asPython(lastRequest(conversation, loop.model)),
    javascript: () => asJavaScript(lastRequest(conversation, loop.model)),
  };
  let form = FORMS[0];
  const buttons = FORMS.map((one) => button(one[1], () => show(one)));
  const show = (one) => {
    form = one;
    text.textContent = texts[one[0]]();
    FORMS.forEach((other, at) => buttons[at].setAttribute("aria-pressed", String(other === one)));
  };
  byId("export-forms").replaceChildren(...buttons);
  byId("export-copy").addEventListener("click", () => copy(text.textContent, text));
  byId("export-save").addEventListener("click", () => save(text.textContent, form[2]));
  byId("export").addEventListener("click", () => {
    byId("export-problem").textContent = "";
    show(form);
    dialog.showModal();
  });
  byId("export-open").addEventListener("change", async ({ target }) => {
    try {
      const kept = JSON.parse(await target.files[0].text());
      loop.stop();
      conversation.restore(kept);
      dialog.close();
    } catch (error) {
      byId("export-problem").textContent = `This file cannot be opened: ${error.message}`;
    }
    target.value = "";
  });
}

function save(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
