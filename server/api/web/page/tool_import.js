/** Tools from whatever is pasted: an OpenAPI document, definitions as any API has them, Python functions. */

import { byId, el } from "./dom.js";
import { nameOf, toolsOfOpenApi } from "./openapi.js";
import { toolsOfPython } from "./python.js";
import { problemOfName } from "./tool_editor.js";

/** The dialog that reads them; the chosen ones are given to `add`. */
export function setUpImport(add) {
  const dialog = byId("import-dialog");
  const source = byId("import-text");
  const found = byId("import-found");
  const problem = byId("import-problem");
  let chosen = [];
  const read = () => {
    problem.textContent = "";
    found.replaceChildren();
    chosen = [];
    try {
      if (source.value.trim()) chosen = readTools(source.value).map(({ note, ...tool }) => ({ tool, note, box: chosenBox() }));
      found.append(...chosen.map((one) => el("li", {}, importLine(one))));
    } catch (error) {
      problem.textContent = error.message;
    }
    byId("import-add").disabled = !chosen.length;
  };
  source.addEventListener("input", read);
  byId("import-add").addEventListener("click", () => {
    add(chosen.filter(({ box }) => box.checked).map(({ tool }) => tool));
    source.value = "";
    dialog.close();
  });
  byId("tool-import").addEventListener("click", () => {
    read();
    dialog.showModal();
  });
}

const chosenBox = () => el("input", { type: "checkbox", checked: true });

function importLine({ tool, note, box }) {
  const faults = [problemOfName(tool.name), note].filter(Boolean).join("; ");
  return el("label", {}, box, el("code", {}, tool.name), el("span.caption", {}, tool.description), faults ? el("span.chip.warn", {}, faults) : null);
}

/** Tools from whatever was pasted: an OpenAPI document, definitions of tools, or Python. */
export function readTools(text) {
  if (!/^\s*[[{]/.test(text)) return toolsOfPython(text);
  const value = jsonOf(text);
  if (value.paths) return toolsOfOpenApi(text);
  const listed = Array.isArray(value) ? value : Array.isArray(value.tools) ? value.tools : [value];
  return listed.map((one) => {
    const inner = one.function ?? one.custom ?? one;
    if (typeof inner.name !== "string") throw new Error("A definition has no name.");
    const format = inner.format?.grammar ?? inner.format ?? {};
    return {
      name: inner.name,
      description: inner.description ?? "",
      custom: one.type === "custom",
      parameters: inner.parameters ?? inner.input_schema ?? { type: "object", properties: {} },
      strict: Boolean(inner.strict),
      syntax: format.syntax === "regex" ? "regex" : "lark",
      definition: format.definition ?? "",
    };
  });
}

function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This is no JSON: ${error.message}. An OpenAPI document in YAML has to be converted first.`);
  }
}
