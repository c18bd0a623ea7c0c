/** What happened to one reply, as far as it is known: figures, notes, prompt, tokens, steps, grammar. */

import { el, svg } from "./dom.js";
import { rateOf } from "./reply.js";
import { TokenList, tellPrompt, tellReply } from "./tokens.js";

/** Grows with the reply that it shows: tokens that are shown stay, so that the one that is pointed at does. */
export class TraceView {
  constructor(reply) {
    this.reply = reply;
    this.node = el("div");
    this.summary = el("div");
    this.prompt = null;
    this.update();
  }

  /** Show what has come since. */
  update() {
    const { trace } = this.reply;
    this.summary.replaceChildren(figures(this.reply), ...noteNodes(this.reply));
    if (!trace) return this.node.replaceChildren(this.summary, el("p.caption", {}, whyNoTrace(this.reply)));
    if (!this.prompt) this.build(trace);
    this.title.textContent = replyTitle(trace);
    this.tokens.grow();
    const ended = this.reply.finish !== null;
    this.steps.replaceChildren(ended ? stepDrawing(trace) : el("p.caption", {}, "drawn when the reply has ended"));
  }

  build(trace) {
    const { prompt, cached_tokens: cached, grammar } = trace;
    const classesOf = (token, place) => promptClasses(token, place, cached);
    this.prompt = new TokenList("Tokens of the prompt", prompt, classesOf, (token, place) => tellPrompt(token, place, cached));
    this.tokens = new TokenList("Tokens of the reply", trace.tokens, replyClasses, tellReply);
    this.title = el("h3");
    this.steps = el("div");
    const held = grammar && el("details", {}, el("summary", {}, `Grammar: ${grammar.length} characters`), el("pre", { tabindex: "0" }, grammar));
    this.node.replaceChildren(
      this.summary,
      el("h3", {}, `Prompt: ${prompt.length} tokens, ${cached} of them cached`),
      legend([["control", "control token"], ["cached", "cached"]]),
      this.prompt.node,
      this.title,
      legend([["forced", "forced by the grammar"], ["accepted", "drafted and accepted"], ["control", "control token"]]),
      this.tokens.node,
      el("h3", {}, "Steps"),
      this.steps,
      ...(held ? [held] : []),
    );
  }
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
