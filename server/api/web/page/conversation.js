/** The conversation: turns, tools and options, kept in the browser. Traces and frames are not kept. */

import { EXAMPLES } from "./examples.js";

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
      const kept = JSON.parse(localStorage.getItem(STORE));
      if (kept) conversation.restore(kept);
    } catch {
      conversation.lost = "What this browser had kept could not be read; this is a new conversation.";
    }
    return conversation;
  }

  /** Take an exported conversation. Raises Error where it is none. */
  restore(kept) {
    if (kept?.version !== VERSION || !Array.isArray(kept.turns) || !Array.isArray(kept.tools)) {
      throw new Error("This is no conversation of this page.");
    }
    Object.assign(this, fresh(), {
      system: textOf(kept.system),
      turns: kept.turns.map(turnOf),
      tools: kept.tools.map(toolOf),
      options: optionsOf(kept.options),
    });
    this.changed();
    this.dispatchEvent(new Event("restored"));
  }

  /** What is kept and exported. */
  toJSON() {
    const { system, tools, options } = this;
    const turns = this.turns.map(({ trace, raw, times, ...turn }) => turn);
    return { version: VERSION, system, options, tools, turns };
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
      localStorage.setItem(STORE, JSON.stringify(this));
    } catch {
      if (!this.full) this.dispatchEvent(new Event("full"));
      this.full = true;
    }
  }
}

function fresh() {
  return { system: "", turns: [], tools: [structuredClone(EXAMPLES[0].tools[0])], options: { ...OPTIONS }, lost: "" };
}

const textOf = (value) => (typeof value === "string" ? value : "");

function optionsOf(kept) {
  const known = Object.keys(OPTIONS).filter((name) => {
    const value = kept?.[name];
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
    parameters: kept.parameters && typeof kept.parameters === "object" ? kept.parameters : { type: "object" },
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
    calls: (Array.isArray(kept.calls) ? kept.calls : []).map(callOf),
    finish: textOf(kept.finish) || "interrupted",
    usage: usage && typeof usage === "object" ? usage : null,
    notes: notes && typeof notes === "object" ? notes : null,
    error: error && typeof error === "object" ? { message: textOf(error.message) } : null,
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
    flags: Array.isArray(kept.flags) ? kept.flags.map(String) : [],
    raw: textOf(kept.raw),
    result: result ? { text: textOf(result.text), source: textOf(result.source) } : null,
  };
}

/** The tools that requests offer. */
export function offeredTools(conversation) {
  return conversation.tools.filter((tool) => tool.enabled && tool.name);
}
