/** What happened to one reply: its prompt, grammar, tokens and times; its request; its frames. */

import { button, byId, copy, el, svg } from "./dom.js";
import { rateOf } from "./reply.js";
import { tellPrompt, tellReply, tokenList } from "./tokens.js";

const MOST_FRAMES_SHOWN = 500;
const TABS = [["trace", "What happened"], ["request", "Request"], ["frames", "Frames"]];

export class Inspector {
  constructor() {
    this.node = byId("inspector");
    this.tab = "trace";
    this.reply = null;
    this.tabs = TABS.map(([name, text]) => el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "inspector-panel", click: () => this.choose(name) }, text));
    const list = el("div.tabs", { role: "tablist", "aria-label": "Of this reply", keydown: (event) => this.walk(event) }, this.tabs);
    this.panel = el("div", { role: "tabpanel", id: "inspector-panel", tabindex: "0" });
    this.node.replaceChildren(list, this.panel);
    this.show(null);
  }

  /** Show this reply; the same is shown again where it has changed. */
  show(reply) {
    this.reply = reply;
    this.draw();
  }

  choose(name) {
    this.tab = name;
    this.draw();
    byId(`tab-${name}`).focus();
  }

  walk({ key }) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const at = TABS.findIndex(([name]) => name === this.tab);
    this.choose(TABS[(at + step + TABS.length) % TABS.length][0]);
  }

  draw() {
    TABS.forEach(([name], at) => {
      this.tabs[at].setAttribute("aria-selected", String(name === this.tab));
      this.tabs[at].tabIndex = name === this.tab ? 0 : -1;
    });
    this.panel.setAttribute("aria-labelledby", `tab-${this.tab}`);
    const views = { trace: traceNodes, request: requestNodes, frames: frameNodes };
    this.panel.replaceChildren(...(this.reply ? views[this.tab](this.reply) : [el("p.caption", {}, "A reply shows here how it came about.")]));
  }
}

function traceNodes(reply) {
  const { trace } = reply;
  const nodes = [figures(reply), ...noteNodes(reply)];
  if (!trace) {
    return [...nodes, el("p.caption", {}, whyNoTrace(reply))];
  }
  const cached = trace.cached_tokens;
  nodes.push(
    el("h3", {}, `Prompt: ${trace.prompt.length} tokens, ${cached} of them cached`),
    legend([["control", "control token"], ["cached", "cached"]]),
    tokenList("Tokens of the prompt", trace.prompt, (token, place) => promptClasses(token, place, cached), (token, place) => tellPrompt(token, place, cached)),
    el("h3", {}, replyTitle(trace)),
    legend([["forced", "forced by the grammar"], ["accepted", "drafted and accepted"], ["control", "control token"]]),
    tokenList("Tokens of the reply", trace.tokens, replyClasses, tellReply),
    el("h3", {}, "Steps"),
    stepDrawing(trace),
  );
  if (trace.grammar) nodes.push(el("details", {}, el("summary", {}, `Grammar: ${trace.grammar.length} characters`), el("pre", { tabindex: "0" }, trace.grammar)));
  return nodes;
}

function whyNoTrace({ raw }) {
  if (!raw) return "Traces of the last replies only are kept, until the page is left.";
  return raw.body.toolwire ? "No trace came: the server had not begun this reply." : "This reply was asked for without a trace.";
}

function promptClasses(token, place, cached) {
  return [token.control && "control", place < cached && "cached"].filter(Boolean);
}

function replyClasses(token) {
  const kinds = [token.control && "control", token.forced && "forced", token.accepted && "accepted"];
  return [...kinds, token.logprob !== undefined && !token.forced && "weighed"].filter(Boolean);
}

function replyTitle({ tokens, steps }) {
  const count = (test) => tokens.filter(test).length;
  const drafted = steps.reduce((sum, step) => sum + (step.drafted ?? 0), 0);
  const parts = [`Reply: ${tokens.length} tokens in ${steps.length} steps`, `${count((one) => one.forced)} forced`];
  if (drafted) parts.push(`${count((one) => one.accepted)} of ${drafted} drafted accepted`);
  return parts.join(", ");
}

function legend(entries) {
  return el("p.legend", {}, entries.map(([name, text]) => el("span", {}, el(`span.token.${name}`, { "aria-hidden": "true" }, "ab"), ` ${text} `)));
}

/** Tokens over time: a bar a step. */
function stepDrawing({ steps, stages }) {
  const marks = stages.filter((one) => one.at_s >= 0).map((one) => el("li", {}, `${one.stage} ${(one.at_s * 1000).toFixed(0)} ms`));
  const reached = el("ul.stages", {}, marks);
  if (!steps.length) return el("div", {}, el("p.caption", {}, "none"), reached);
  const end = steps.at(-1).at_s || 1;
  const most = Math.max(...steps.map((step) => step.tokens));
  const bars = steps.map((step) =>
    svg("rect", { x: (step.at_s / end) * 592, y: 56 - (step.tokens / most) * 50, width: 3, height: (step.tokens / most) * 50, class: "bar" }),
  );
  const text = `${steps.length} steps in ${end.toFixed(2)} s, at most ${most} tokens in one`;
  const drawing = svg("svg", { viewBox: "0 0 600 60", role: "img", "aria-label": text, class: "steps" }, bars);
  return el("div", {}, drawing, el("p.caption", {}, text), reached);
}

function figures(reply) {
  const { usage, times, finish } = reply;
  const rows = [["ended by", finish ?? "being written"]];
  if (times?.first) rows.push(["first token", `${Math.round(times.first - times.sent)} ms`]);
  if (times?.end) rows.push(["whole reply", `${Math.round(times.end - times.sent)} ms`]);
  if (usage) {
    rows.push(["prompt", `${usage.prompt} tokens, ${usage.cached} cached`]);
    const thought = usage.reasoning === null ? "" : `, ${usage.reasoning} of thought`; // a trace does not tell
    rows.push(["reply", `${usage.completion} tokens${thought}`]);
    const rate = rateOf(reply);
    if (rate !== null) rows.push(["rate", `${rate.toFixed(1)} tokens/s`]);
  }
  return el("dl.figures", {}, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** What the server repaired, left out or missed. */
function noteNodes({ notes, error }) {
  const lines = (notes?.notes ?? []).map((note) => `${note.kind}${note.param ? ` at ${note.param}` : ""}: ${note.text}`);
  for (const call of notes?.calls ?? []) if (call.flags?.length) lines.push(`call ${call.index}: ${call.flags.join(", ")}`);
  for (const one of notes?.uncalled ?? []) {
    lines.push(one.named.length ? `planned and not called: ${one.named.join(", ")}` : "the reply is blank");
  }
  if (notes?.dropped_messages) lines.push(`${notes.dropped_messages} messages dropped: the prompt was too long`);
  if (error) lines.push(`error: ${error.message}`);
  return lines.length ? [el("h3", {}, "Noted"), el("ul.notes", {}, lines.map((line) => el("li", {}, line)))] : [];
}

function requestNodes({ raw }) {
  if (!raw) return [el("p.caption", {}, "Requests of the last replies only are kept, until the page is left.")];
  const text = JSON.stringify(raw.body, null, 2);
  const pre = el("pre", { tabindex: "0" }, text);
  const line = el("p", {}, el("code", {}, `POST ${raw.url}`), raw.id ? ` request ${raw.id}` : null);
  return [line, button("Copy", () => copy(text, pre)), pre];
}

function frameNodes({ raw, times }) {
  if (!raw) return [el("p.caption", {}, "Frames of the last replies only are kept, until the page is left.")];
  const shown = raw.frames.slice(0, MOST_FRAMES_SHOWN);
  const hidden = raw.frames.length - shown.length + raw.dropped;
  const rows = shown.map((frame) => {
    const at = `${(frame.at - times.sent).toFixed(0)} ms`;
    return el("li", {}, el("span.caption", {}, at, frame.event && ` ${frame.event}`), el("pre", {}, frame.data));
  });
  const text = `${raw.frames.length + raw.dropped} frames${hidden ? `, the last ${hidden} not shown` : ""}`;
  return [el("p.caption", {}, text), el("ol.frames", {}, rows)];
}
