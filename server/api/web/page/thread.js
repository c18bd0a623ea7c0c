/** The conversation as it is read: one article a turn. */

import { CallCard } from "./call_card.js";
import { button, byId, el, oncePerFrame } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { rateOf } from "./reply.js";

const NEAR_END = 80; // pixels: a reader this near to the end follows what is written
const FINISHES = {
  length: "cut off: no tokens left",
  stopped: "stopped",
  interrupted: "interrupted",
  error: "failed",
};

/** Shows the turns. `actions`: `retry(index)`, `edit(index, text)`, `answer(call, text)`, `inspect(reply)`, `shown()`. */
export class Thread {
  constructor(conversation, actions) {
    this.conversation = conversation;
    this.actions = actions;
    this.node = byId("thread");
    this.views = new Map(); // turn -> its view
    this.update = oncePerFrame(() => this.show());
  }

  get busy() {
    return this.node.dataset.busy === "true";
  }

  show() {
    const follows = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < NEAR_END;
    const { turns } = this.conversation;
    const shown = new Set(turns);
    for (const [turn, view] of this.views) {
      if (!shown.has(turn)) {
        view.node.remove();
        this.views.delete(turn);
      }
    }
    turns.forEach((turn, index) => {
      let view = this.views.get(turn);
      if (!view) {
        view = turn.role === "user" ? new UserView(this, turn) : new ReplyView(this, turn);
        this.views.set(turn, view);
        this.node.append(view.node);
      }
      view.update(index);
    });
    byId("welcome").hidden = turns.length > 0;
    if (follows) this.node.scrollTop = this.node.scrollHeight;
    this.actions.shown();
  }

  toEnd() {
    this.show();
    this.node.scrollTop = this.node.scrollHeight;
  }
}

class UserView {
  constructor(thread, turn) {
    this.thread = thread;
    this.turn = turn;
    this.body = el("div.text.plain", { dir: "auto" });
    this.edit = button("Edit", () => this.openForm(), { "aria-label": "Edit this message and go on from it" });
    this.node = el("article.turn.user", { "aria-label": "You" }, el("header", {}, el("h3", {}, "You"), this.edit), this.body);
  }

  update(index) {
    this.index = index;
    if (!this.form && this.body.textContent !== this.turn.text) this.body.textContent = this.turn.text;
  }

  openForm() {
    if (this.form) return;
    const area = el("textarea", { rows: "4", "aria-label": "Your message" });
    area.value = this.turn.text;
    const close = () => {
      this.form = null;
      this.body.textContent = this.turn.text;
      this.edit.focus();
    };
    const submit = (event) => {
      event.preventDefault();
      if (!area.value.trim()) return;
      close();
      this.thread.actions.edit(this.index, area.value);
    };
    const send = el("button.primary", { type: "submit" }, "Send from here");
    this.form = el("form", { submit }, area, el("div.row", {}, send, button("Cancel", close)));
    this.body.replaceChildren(this.form);
    area.focus();
  }
}

class ReplyView {
  constructor(thread, turn) {
    this.thread = thread;
    this.turn = turn;
    this.thoughts = el("div.text.plain", { dir: "auto" });
    this.folded = el("details.thoughts", { hidden: true }, el("summary", {}, "Thoughts"), this.thoughts);
    this.body = el("div.text", { dir: "auto" });
    this.markdown = new MarkdownView(this.body);
    this.cards = [];
    this.calls = el("div.calls");
    this.fault = el("p.fault", { role: "alert", hidden: true });
    this.figures = el("span.figures");
    this.retry = button("Retry", () => thread.actions.retry(this.index), { "aria-label": "Retry: write this reply again" });
    this.inspect = button("What happened", () => thread.actions.inspect(turn));
    const head = el("header", {}, el("h3", {}, "Model"), this.figures, this.inspect, this.retry);
    this.node = el("article.turn.model", { "aria-label": "Model" }, head, this.folded, this.body, this.calls, this.fault);
  }

  update(index) {
    this.index = index;
    const { turn } = this;
    const ended = turn.finish !== null;
    this.node.setAttribute("aria-busy", String(!ended));
    const key = ended ? settledKey(turn, this.thread.busy) : null;
    if (ended && this.settled === key) return;
    this.folded.hidden = !turn.thoughts;
    if (turn.thoughts && this.thoughts.textContent !== turn.thoughts) this.thoughts.textContent = turn.thoughts;
    this.markdown.update(turn.text);
    this.updateCalls(ended);
    this.fault.hidden = !turn.error;
    const fault = turn.error ? faultText(turn.error) : "";
    if (this.fault.textContent !== fault) this.fault.textContent = fault;
    const figures = ended ? figuresOf(turn) : "writing";
    if (this.figures.textContent !== figures) this.figures.textContent = figures;
    this.retry.hidden = !ended;
    this.settled = key;
  }

  updateCalls(ended) {
    this.turn.calls.forEach((call, at) => {
      if (!this.cards[at]) {
        const tool = this.thread.conversation.tools.find((one) => one.name === call.name);
        const answer = (one, text) => this.thread.actions.answer(this.index, one, text);
        this.cards[at] = new CallCard(call, tool, answer);
        this.calls.append(this.cards[at].node);
      }
      this.cards[at].update(ended, this.thread.busy && this.index === this.thread.conversation.turns.length - 1);
    });
  }
}

/** What a reply that has ended is still changed by. */
function settledKey({ finish, calls, error, times, usage }, busy) {
  return JSON.stringify([finish, calls.map((call) => call.result), error, times?.end, usage, busy]);
}

function faultText({ message, param, code }) {
  return [message, param && `(${param})`, code && `[${code}]`].filter(Boolean).join(" ");
}

/** The end of a reply, its tokens and its times, in a line. */
export function figuresOf(reply) {
  const { finish, usage, times } = reply;
  const parts = FINISHES[finish] ? [FINISHES[finish]] : [];
  if (usage) parts.push(`${usage.completion} tokens`);
  const rate = rateOf(reply);
  if (rate !== null) parts.push(`${rate.toFixed(0)} tokens/s`);
  if (times?.first) parts.push(`first after ${Math.round(times.first - times.sent)} ms`);
  return parts.join(" · ");
}
