/** The editor of one tool: its name, its schema or grammar, and how its calls are answered. */

import { requestJson } from "./api.js";
import { button, choice, el, labelled } from "./dom.js";
import { checkText } from "./schema.js";
import { toolOf } from "./surface_chat.js";

const NAME = /^[a-zA-Z0-9_.:/-]{1,128}$/; // what the server takes

/** What is wrong with a name of a tool; nothing where it is right. */
export function problemOfName(name) {
  if (NAME.test(name)) return "";
  return name ? "the server takes names of at most 128 letters a-z, digits and _ - . : / only" : "a tool without a name is not offered";
}

/** The fields of one tool. */
export class ToolEditor {
  constructor(tool, panel, rename) {
    this.tool = tool;
    this.panel = panel;
    this.checkLine = el("p.answer", { role: "status" });
    this.isRead = true; // what is typed as its schema is its schema
    this.parts = el("div");
    this.answerParts = el("div");
    const name = el("input", { value: tool.name, spellcheck: "false" });
    const nameLine = el("div.problems", { role: "status" });
    const showName = () => {
      const fault = problemOfName(tool.name) || (panel.isTaken(tool) ? "another tool has this name" : "");
      nameLine.replaceChildren(...(fault ? [problemLine({ text: fault, serious: true })] : []));
      name.setAttribute("aria-invalid", String(fault !== ""));
    };
    name.addEventListener("input", () => {
      this.set({ name: name.value.trim() });
      rename();
      showName();
    });
    showName();
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
      labelled("Name", name), nameLine, labelled("Description", description), labelled("Kind", kind), this.parts,
      labelled("Calls are answered", mode), this.answerParts, row, this.checkLine,
    );
    this.showParts();
    this.showAnswer();
  }

  set(fields) {
    Object.assign(this.tool, fields);
    this.panel.changed();
  }

  showParts() {
    this.parts.replaceChildren(...(this.tool.custom ? this.grammarFields() : this.schemaFields()));
  }

  schemaFields() {
    const { tool } = this;
    const area = el("textarea.code", { rows: "10", spellcheck: "false" });
    area.value = JSON.stringify(tool.parameters, null, 2);
    const problems = el("div.problems", { role: "status" });
    const check = () => {
      const found = checkText(area.value);
      problems.replaceChildren(...found.problems.map((one) => problemLine(one)));
      this.isRead = found.schema !== null;
      if (!this.isRead) problems.append(el("p", {}, "until this is mended, the schema before it is offered"));
      area.setAttribute("aria-invalid", String(!this.isRead));
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
    if (!this.tool.custom && !this.isRead) {
      this.checkLine.textContent = "Mend the parameters first.";
      return;
    }
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
  return el(serious ? "p.serious" : "p", {}, path ? el("code", {}, path) : null, path ? " " : null, text);
}
