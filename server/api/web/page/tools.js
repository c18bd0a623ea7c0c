/** The tools of the conversation: a list, and ways to bring in others. */

import { button, byId, el } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { ToolEditor } from "./tool_editor.js";
import { setUpImport } from "./tool_import.js";

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
    setUpImport((tools) => this.add(tools.map((tool) => newTool(tool))));
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
      if (known) known.enabled = true;
      else this.add([structuredClone(tool)]);
    }
    this.changed();
    this.show();
    this.useMessage(example.message);
  }

  freeName(name) {
    const taken = new Set(this.conversation.tools.map((one) => one.name));
    let number = 2;
    let free = name;
    while (taken.has(free)) free = `${name}_${number++}`;
    return free;
  }

  /** Whether another tool has the name of this one. */
  isTaken(tool) {
    return this.conversation.tools.some((one) => one !== tool && one.name === tool.name);
  }

  remove(tool) {
    this.conversation.tools.splice(this.conversation.tools.indexOf(tool), 1);
    this.changed();
    this.show();
  }

  item(tool) {
    const title = el("code", {}, el("bdi"));
    const offered = el("input", { type: "checkbox", checked: tool.enabled });
    const rename = () => {
      title.firstChild.textContent = tool.name;
      offered.setAttribute("aria-label", `Offer ${tool.name || "the tool without a name"}`);
    };
    rename();
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
        details.append(new ToolEditor(tool, this, rename).node);
      }
    };
    details.addEventListener("toggle", fill);
    if (details.open) fill();
    return el("li.tool", {}, offered, details);
  }
}

function kindOf(tool) {
  const count = Object.keys(tool.parameters.properties ?? {}).length;
  if (!tool.custom) return count === 1 ? "1 parameter" : `${count} parameters`;
  return tool.definition ? `text of a ${tool.syntax === "lark" ? "grammar" : "pattern"}` : "free text";
}
