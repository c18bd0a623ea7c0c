/** The tools of the conversation: a list, an editor for one, and ways to bring in others. */

import { requestJson } from "./api.js";
import { button, byId, choice, el, labelled } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { nameOf, toolsOfOpenApi } from "./openapi.js";
import { toolsOfPython } from "./python.js";
import { checkText } from "./schema.js";
import { toolOf } from "./surface_chat.js";

const MOST_TOOLS = 128;
const NEW_FUNCTION = "(args) => ({ ok: true })";

/** A tool with what a new one has besides. */
export function newTool(known = {}) {
  return {
    name: "new_tool",
    description: "",
    custom: false,
    parameters: { type: "object", properties: {}, required: [] },
    strict: false,
    syntax: "lark",
    definition: "",
    enabled: true,
    answer: { mode: "hand", value: '{"ok": true}', source: NEW_FUNCTION },
    ...known,
  };
}

/** The panel. `useMessage(text)` is called with an example's message. */
export class ToolsPanel {
  constructor(conversation, useMessage) {
    this.conversation = conversation;
    this.useMessage = useMessage;
    this.list = byId("tool-list");
    this.open = new Set(); // tools whose editor is open
    byId("tool-add").addEventListener("click", () => this.add([newTool({ name: this.freeName("new_tool") })]));
    byId("tool-import").addEventListener("click", () => this.openImport());
    byId("tool-examples").replaceChildren(...EXAMPLES.map((one) => button(one.title, () => this.addExample(one))));
    this.show();
  }

  show() {
    const { tools } = this.conversation;
    this.list.replaceChildren(...tools.map((tool) => this.item(tool)));
    this.showCount();
  }

  showCount() {
    const { tools } = this.conversation;
    byId("tool-count").textContent = tools.length ? `${tools.filter((one) => one.enabled).length} of ${tools.length} offered` : "none";
  }

  changed() {
    this.conversation.changed();
  }

  add(tools) {
    const room = Math.max(0, MOST_TOOLS - this.conversation.tools.length);
    for (const tool of tools.slice(0, room)) {
      this.conversation.tools.push({ ...tool, name: this.freeName(tool.name) });
    }
    if (tools.length === 1 && room) this.open.add(this.conversation.tools.at(-1));
    this.changed();
    this.show();
    this.list.lastElementChild?.scrollIntoView({ block: "nearest" });
  }

  addExample(example) {
    for (const tool of example.tools) {
      const known = this.conversation.tools.find((one) => one.name === tool.name);
      if (!known) this.add([structuredClone(tool)]);
    }
    this.useMessage(example.message);
  }

  freeName(name) {
    const taken = new Set(this.conversation.tools.map((one) => one.name));
    let number = 2;
    let free = name;
    while (taken.has(free)) free = `${name}_${number++}`;
    return free;
  }

  remove(tool) {
    this.conversation.tools.splice(this.conversation.tools.indexOf(tool), 1);
    this.changed();
    this.show();
  }

  item(tool) {
    const title = el("code", {}, tool.name);
    const offered = el("input", { type: "checkbox", checked: tool.enabled, "aria-label": `Offer ${tool.name}` });
    offered.addEventListener("change", () => {
      tool.enabled = offered.checked;
      this.changed();
      this.showCount();
    });
    const details = el("details", { open: this.open.has(tool) }, el("summary", {}, title, el("span.caption", {}, kindOf(tool))));
    const fill = () => {
      if (!details.open) this.open.delete(tool);
      else if (!details.querySelector(".editor")) {
        this.open.add(tool);
        details.append(new ToolEditor(tool, this, title).node);
      }
    };
    details.addEventListener("toggle", fill);
    if (details.open) fill();
    return el("li.tool", {}, offered, details);
  }

  openImport() {
    const dialog = byId("import-dialog");
    const source = byId("import-text");
    const found = byId("import-found");
    const problem = byId("import-problem");
    let tools = [];
    const read = () => {
      problem.textContent = "";
      found.replaceChildren();
      try {
        tools = readTools(source.value).map((tool) => newTool(tool));
        found.append(...tools.map((tool) => el("li", {}, importChoice(tool))));
      } catch (error) {
        tools = [];
        if (source.value.trim()) problem.textContent = error.message;
      }
      byId("import-add").disabled = !tools.length;
    };
    source.oninput = read;
    byId("import-add").onclick = () => {
      this.add(tools.filter((tool) => tool.enabled).map((tool) => ({ ...tool, enabled: true })));
      source.value = "";
      dialog.close();
    };
    read();
    dialog.showModal();
  }
}

function importChoice(tool) {
  const box = el("input", { type: "checkbox", checked: true });
  box.addEventListener("change", () => (tool.enabled = box.checked));
  return el("label", {}, box, el("code", {}, tool.name), el("span.caption", {}, tool.description));
}

/** Tools from whatever was pasted: an OpenAPI document, definitions of tools, or Python. */
export function readTools(text) {
  if (!/^\s*[[{]/.test(text)) return toolsOfPython(text);
  const value = JSON.parse(text);
  if (value.paths) return toolsOfOpenApi(text);
  const listed = Array.isArray(value) ? value : Array.isArray(value.tools) ? value.tools : [value];
  return listed.map((one) => {
    const inner = one.function ?? one.custom ?? one;
    if (typeof inner.name !== "string") throw new Error("A definition has no name.");
    const format = inner.format?.grammar ?? inner.format ?? {};
    return {
      name: nameOf(inner.name),
      description: inner.description ?? "",
      custom: one.type === "custom",
      parameters: inner.parameters ?? inner.input_schema ?? { type: "object", properties: {} },
      strict: Boolean(inner.strict),
      syntax: format.syntax === "regex" ? "regex" : "lark",
      definition: format.definition ?? "",
    };
  });
}

function kindOf(tool) {
  if (!tool.custom) return `${Object.keys(tool.parameters.properties ?? {}).length} parameters`;
  return tool.definition ? `text of a ${tool.syntax === "lark" ? "grammar" : "pattern"}` : "free text";
}

/** The fields of one tool. */
class ToolEditor {
  constructor(tool, panel, title) {
    this.tool = tool;
    this.panel = panel;
    this.title = title;
    this.checkLine = el("p.caption", { role: "status" });
    this.parts = el("div");
    this.answerParts = el("div");
    const name = el("input", { value: tool.name, maxlength: "64", spellcheck: "false" });
    name.addEventListener("input", () => this.set({ name: nameOf(name.value) }));
    const description = el("textarea", { rows: "2" });
    description.value = tool.description;
    description.addEventListener("input", () => this.set({ description: description.value }));
    const kinds = [["function", "function with a JSON Schema"], ["custom", "custom: text, free or by a grammar"]];
    const kind = choice(kinds, tool.custom ? "custom" : "function", (value) => {
      this.set({ custom: value === "custom" });
      this.showParts();
    });
    const modes = [["hand", "by hand"], ["value", "with a value"], ["function", "with a JavaScript function"]];
    const mode = choice(modes, tool.answer.mode, (value) => {
      tool.answer.mode = value;
      this.panel.changed();
      this.showAnswer();
    });
    const row = el("div.row", {}, button("Check with the server", () => this.check()), button("Delete", () => panel.remove(tool)));
    this.node = el(
      "div.editor", {},
      labelled("Name", name), labelled("Description", description), labelled("Kind", kind), this.parts,
      labelled("Calls are answered", mode), this.answerParts, row, this.checkLine,
    );
    this.showParts();
    this.showAnswer();
  }

  set(fields) {
    Object.assign(this.tool, fields);
    this.title.textContent = this.tool.name;
    this.panel.changed();
  }

  showParts() {
    this.parts.replaceChildren(...(this.tool.custom ? this.grammarFields() : this.schemaFields()));
  }

  schemaFields() {
    const { tool } = this;
    const area = el("textarea.code", { rows: "10", spellcheck: "false" });
    area.value = JSON.stringify(tool.parameters, null, 2);
    const problems = el("ul.problems", { role: "status" });
    const check = () => {
      const found = checkText(area.value);
      problems.replaceChildren(...found.problems.map((one) => problemLine(one)));
      area.setAttribute("aria-invalid", String(found.schema === null));
      if (found.schema) this.set({ parameters: found.schema });
    };
    area.addEventListener("input", check);
    const strict = el("input", { type: "checkbox", checked: tool.strict });
    strict.addEventListener("change", () => this.set({ strict: strict.checked }));
    return [labelled("Parameters (JSON Schema)", area), problems, el("label.check", {}, strict, "strict: only what the schema admits")];
  }

  grammarFields() {
    const { tool } = this;
    const area = el("textarea.code", { rows: "6", spellcheck: "false", placeholder: "empty: free text" });
    area.value = tool.definition;
    area.addEventListener("input", () => this.set({ definition: area.value }));
    const syntax = choice([["lark", "Lark grammar"], ["regex", "regular expression"]], tool.syntax, (value) => this.set({ syntax: value }));
    return [labelled("Written in", syntax), labelled("Grammar", area)];
  }

  showAnswer() {
    const { answer } = this.tool;
    if (answer.mode === "hand") return this.answerParts.replaceChildren();
    const field = answer.mode === "value" ? "value" : "source";
    const area = el("textarea.code", { rows: "5", spellcheck: "false" });
    area.value = answer[field];
    area.addEventListener("input", () => {
      answer[field] = area.value;
      this.panel.changed();
    });
    return this.answerParts.replaceChildren(labelled(field === "value" ? "Value" : "Function of the arguments", area));
  }

  /** Have the server read the tool as it would in a request. */
  async check() {
    this.checkLine.textContent = "asking";
    try {
      const model = (await requestJson("/v1/models")).data[0].id;
      const messages = [{ role: "user", content: "." }];
      const body = { model, messages, tools: [toolOf(this.tool)], max_completion_tokens: 1 };
      const { usage } = await requestJson("/v1/chat/completions", { body });
      this.checkLine.textContent = `The server takes it: ${usage.prompt_tokens} tokens of prompt.`;
    } catch (error) {
      this.checkLine.textContent = `${error.message}${error.param ? ` (${error.param})` : ""}`;
    }
  }
}

function problemLine({ path, text, serious }) {
  return el(serious ? "li.serious" : "li", {}, path ? el("code", {}, path) : null, path ? " " : null, text);
}
