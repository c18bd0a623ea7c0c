/** Options of the requests: surface, choice of tools, sampling, what to record. */

import { byId, choice, el, labelled } from "./dom.js";
import { offeredTools } from "./conversation.js";
import { SURFACES } from "./surfaces.js";

const CHOICES = [["auto", "auto: as the model likes"], ["required", "required: some call"], ["none", "none: no call"]];
const THINKING = [["auto", "as the model likes"], ["on", "think"], ["off", "do not think"]];

/** The panel of options; it is made again where the tools change. */
export class OptionsPanel {
  constructor(conversation) {
    this.conversation = conversation;
    this.node = byId("options");
    const system = byId("system");
    system.value = conversation.system;
    system.addEventListener("input", () => {
      conversation.system = system.value;
      conversation.keep();
    });
    this.show();
  }

  show() {
    const { options } = this.conversation;
    const names = offeredTools(this.conversation).map((tool) => tool.name);
    const known = ["auto", "required", "none", ...names];
    if (!known.includes(options.toolChoice)) options.toolChoice = "auto";
    const surface = SURFACES[options.surface];
    const left = surface.leftOut?.({ options, tools: offeredTools(this.conversation) }) ?? [];
    const key = JSON.stringify([options, names, left, this.conversation.system]);
    if (key === this.shown) return;
    this.shown = key;
    const focused = document.activeElement?.dataset?.option;
    byId("system").value = this.conversation.system;
    this.node.replaceChildren(
      labelled("Surface", this.choice("surface", Object.entries(SURFACES).map(([value, one]) => [value, one.name]))),
      ...(left.length ? [el("p.chip.warn.wraps", { role: "status" }, `${surface.name} cannot send: ${left.join(", ")}`)] : []),
      labelled("Tool choice", this.choice("toolChoice", [...CHOICES, ...names.map((name) => [name, `call ${name}`])])),
      labelled("Thinking", this.choice("thinking", THINKING)),
      this.check("parallel", "several calls in one reply"),
      this.check("loop", "go on when all calls are answered"),
      this.check("trace", "record what happened"),
      this.check("logprobs", "with probabilities (forced tokens are then sampled one by one)"),
      this.number("temperature", "Temperature", 0, 2, "any"),
      this.number("maxTokens", "Most tokens", 1, 1e9, "1"),
      this.number("seed", "Seed", -1e15, 1e15, "1"),
    );
    if (focused) this.node.querySelector(`[data-option="${focused}"]`)?.focus();
  }

  set(name, value) {
    this.conversation.options[name] = value;
    this.conversation.changed();
  }

  choice(name, options) {
    const select = choice(options, this.conversation.options[name], (value) => this.set(name, value));
    select.dataset.option = name;
    return select;
  }

  check(name, text) {
    const box = el("input", { type: "checkbox", checked: this.conversation.options[name], "data-option": name });
    box.addEventListener("change", () => this.set(name, box.checked));
    return el("label.check", {}, box, text);
  }

  number(name, text, min, max, step) {
    const value = this.conversation.options[name];
    const field = el("input", { type: "number", min: String(min), max: String(max), step, placeholder: "the server's", "data-option": name });
    field.value = value ?? "";
    field.addEventListener("change", () => {
      const given = field.value === "" || !field.checkValidity() ? null : Number(field.value);
      if (given === null) field.value = "";
      this.set(name, given);
    });
    return labelled(text, field);
  }
}
