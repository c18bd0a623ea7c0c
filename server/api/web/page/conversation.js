/** The conversation: turns, tools and options, kept in the browser. Traces and frames are not kept. */

import { EXAMPLES } from "./examples.js";
import { isObject } from "./schema.js";
import { kept as storage } from "./store.js";

const STORE = "toolwire.conversation";
const VERSION = 1;

const OPTIONS = {
  surface: "chat",
  toolChoice: "auto",
  parallel: true,
  thinking: "auto",
  temperature: null,
  maxTokens: null,
  seed: null,
  trace: true,
  logprobs: false,
  loop: true,
};
const VALUES = { surface: ["chat", "responses", "messages"], thinking: ["auto", "on", "off"] };

/** State of the page. `turns` are `{ role: "user", text }` and replies; a call of a reply holds its own result. */
export class Conversation extends EventTarget {
  constructor() {
    super();
    Object.assign(this, fresh());
  }

  /** What was kept here, or a first conversation. */
  static load() {
    const conversation = new Conversation();
    try {
      const kept = JSON.parse(storage.getItem(STORE));
      if (kept) conversation.restore(kept);
    } catch {
      conversation.lost = "What this browser had kept could not be read; this is a new conversation.";
    }
    return conversation;
  }

  /** Take an exported conversation. Raises Error where it is none. */
  restore(kept) {
    Object.assign(this, fresh(), read(kept));
    this.changed();
    this.dispatchEvent(new Event("restored"));
  }

  /** Take over what another tab has kept; what is the same here stays as it is, with its traces. */
  follow(text) {
    const { turns, tools, ...other } = read(JSON.parse(text));
    const same = (one, own) => own !== undefined && JSON.stringify(one) === JSON.stringify(own);
    const moved = !same(tools, this.tools.map(toolOf));
    this.turns = turns.map((turn, at) => (same(turn, this.turns[at] && turnOf(this.turns[at])) ? this.turns[at] : turn));
    Object.assign(this, other, moved ? { tools } : {});
    this.dispatchEvent(new Event("change"));
    if (moved) this.dispatchEvent(new Event("restored"));
  }

  /** Have this called with what another tab of this browser keeps from now on. */
  onOtherTab(heard) {
    addEventListener("storage", ({ key, newValue }) => {
      if (key === STORE && newValue) heard(newValue);
    });
  }

  /** What is kept and exported. */
  toJSON() {
    const { system, tools, options } = this;
    return { version: VERSION, system, options, tools, turns: this.turns.map(storedTurn) };
  }

  /** Begin again, with the same tools and options. */
  clear() {
    this.turns = [];
    this.changed();
  }

  /** Drop the turns from this one on. */
  cutFrom(index) {
    this.turns.length = index;
    this.changed();
  }

  /** Tell the views, and keep it. */
  changed() {
    this.keep();
    this.dispatchEvent(new Event("change"));
  }

  /** Keep it in this browser. A full store is reported once. */
  keep() {
    try {
      storage.setItem(STORE, JSON.stringify(this));
      this.full = false;
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      if (!this.full) this.dispatchEvent(new Event("full"));
      this.full = true;
    }
  }
}

function fresh() {
  return { system: "", turns: [], tools: [structuredClone(EXAMPLES[0].tools[0])], options: { ...OPTIONS }, lost: "" };
}

/** A turn without what is not kept. */
function storedTurn({ trace, raw, times, ...turn }) {
  return turn;
}

/** What an exported conversation holds, whoever wrote it. Raises Error where it is none. */
function read(kept) {
  const lists = [kept?.turns, kept?.tools];
  if (kept?.version !== VERSION || !lists.every((list) => Array.isArray(list) && list.every(isObject))) {
    throw new Error("This is no conversation of this page.");
  }
  return {
    system: textOf(kept.system),
    turns: kept.turns.map(turnOf),
    tools: kept.tools.map(toolOf),
    options: optionsOf(kept.options),
  };
}

const textOf = (value) => (typeof value === "string" ? value : "");

function optionsOf(kept) {
  const known = Object.keys(OPTIONS).filter((name) => {
    const value = kept?.[name];
    if (VALUES[name] && !VALUES[name].includes(value)) return false;
    return value !== undefined && (OPTIONS[name] === null ? typeof (value ?? 0) === "number" : typeof value === typeof OPTIONS[name]);
  });
  return { ...OPTIONS, ...Object.fromEntries(known.map((name) => [name, kept[name]])) };
}

function toolOf(kept) {
  const answer = kept.answer ?? {};
  return {
    name: textOf(kept.name),
    description: textOf(kept.description),
    custom: Boolean(kept.custom),
    parameters: isObject(kept.parameters) ? kept.parameters : { type: "object" },
    strict: Boolean(kept.strict),
    syntax: kept.syntax === "regex" ? "regex" : "lark",
    definition: textOf(kept.definition),
    enabled: kept.enabled !== false,
    answer: {
      mode: ["hand", "value", "function"].includes(answer.mode) ? answer.mode : "hand",
      value: textOf(answer.value),
      source: textOf(answer.source),
    },
  };
}

function turnOf(kept) {
  if (kept.role === "user") return { role: "user", text: textOf(kept.text) };
  const { usage, notes, error, signature } = kept;
  return {
    role: "assistant",
    text: textOf(kept.text),
    thoughts: textOf(kept.thoughts),
    calls: objectsIn(kept.calls).map(callOf),
    finish: textOf(kept.finish) || "interrupted",
    usage: isObject(usage) ? usage : null,
    notes: notesOf(notes),
    error: isObject(error) ? { message: textOf(error.message) } : null,
    signature: typeof signature === "string" ? signature : null,
    trace: null,
    raw: null,
    times: null,
  };
}

function callOf(kept) {
  const { result } = kept;
  return {
    id: textOf(kept.id),
    name: textOf(kept.name),
    custom: Boolean(kept.custom),
    arguments: textOf(kept.arguments),
    done: Boolean(kept.done),
    flags: textsIn(kept.flags),
    raw: textOf(kept.raw),
    result: result ? { text: textOf(result.text), source: textOf(result.source), ...(result.failed && { failed: true }) } : null,
  };
}

const objectsIn = (value) => (Array.isArray(value) ? value.filter(isObject) : []);
const textsIn = (value) => (Array.isArray(value) ? value.map(String) : []);

function notesOf(kept) {
  if (!isObject(kept)) return null;
  return {
    ...kept,
    notes: objectsIn(kept.notes),
    calls: objectsIn(kept.calls).map((one) => ({ ...one, flags: textsIn(one.flags) })),
    uncalled: objectsIn(kept.uncalled).map((one) => ({ ...one, named: textsIn(one.named) })),
  };
}

/** The tools that requests offer. */
export function offeredTools(conversation) {
  return conversation.tools.filter((tool) => tool.enabled && tool.name);
}
