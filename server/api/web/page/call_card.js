/** A call as a card: its arguments as they are written, its flags, and its result or a form for it. */

import { button, el } from "./dom.js";
import { indented } from "./json_text.js";
import { isWhole } from "./reply.js";

const FLAGS = {
  repaired: "The text of the model was not valid in its format, but unambiguous.",
  truncated: "The reply ended inside this call.",
  invalid: "The arguments do not satisfy the schema of the tool.",
  repeated: "The same call for the third time in a row: the reply was ended here.",
};
const SOURCES = { hand: "by hand", value: "the tool's value", function: "the tool's function" };

/** A card that is updated while its call is written. `answer(call, text)` is called with a result. */
export class CallCard {
  constructor(call, tool, answer) {
    this.call = call;
    this.tool = tool;
    this.answer = answer;
    this.arguments = el("pre.arguments", { tabindex: "0", "aria-label": `Arguments of ${call.name}` });
    this.state = el("span.chip");
    this.flags = el("div.flags");
    this.outcome = el("div.outcome");
    const head = el("header", {}, el("code.name", {}, el("bdi", {}, call.name)), this.state);
    this.node = el("section.call", { "aria-label": `Call of ${call.name}` }, head, this.arguments, this.flags, this.outcome);
    this.shown = null;
  }

  /** Show the call as it is now; `ended` where its reply is over, `busy` while the loop still works. */
  update(ended, busy) {
    const { call } = this;
    const text = ended && !call.custom ? indented(call.arguments) : call.arguments;
    if (this.arguments.textContent !== text) this.arguments.textContent = text;
    const whole = isWhole(call);
    const runs = busy && ["value", "function"].includes(this.tool?.answer.mode);
    const waits = runs ? "its function runs" : "waits for its result";
    const state = call.result ? "answered" : !ended ? "being written" : whole ? waits : "cut off";
    const key = [state, ended, call.flags.join(), call.result?.text].join("\n");
    if (key === this.shown) return;
    this.shown = key;
    this.state.textContent = state;
    this.node.dataset.state = state;
    this.showFlags();
    this.outcome.replaceChildren(...this.outcomeNodes(ended && whole && !(runs && !call.result)));
  }

  showFlags() {
    const { call } = this;
    const chips = call.flags.map((flag) => el("span.chip.warn", { title: FLAGS[flag] ?? "" }, flag));
    const raw = call.raw ? el("details", {}, el("summary", {}, "as the model wrote it"), el("pre", { tabindex: "0" }, call.raw)) : null;
    this.flags.replaceChildren(...chips, ...(raw ? [raw] : []));
  }

  outcomeNodes(open) {
    const { result } = this.call;
    if (result) {
      const edit = open ? button("Change", () => this.showForm(result.text)) : null;
      const label = el("div.caption", {}, `Result, ${SOURCES[result.source] ?? result.source}`, edit);
      return [label, el(result.failed ? "pre.result.failed" : "pre.result", { tabindex: "0" }, indented(result.text))];
    }
    return open ? [this.form(this.tool?.answer.value ?? "")] : [];
  }

  showForm(text) {
    this.outcome.replaceChildren(this.form(text));
    this.outcome.querySelector("textarea").focus();
  }

  form(text) {
    const area = el("textarea", { rows: "3", "aria-label": `Result of ${this.call.name}`, placeholder: "What the tool returns" });
    area.value = text;
    const submit = (event) => {
      event.preventDefault();
      this.answer(this.call, area.value);
    };
    return el("form", { submit }, area, el("button.primary", { type: "submit" }, "Return this result"));
  }
}
