/** Tokens as text that can be read and walked through: control tokens, cached, forced, accepted, probabilities. */

import { button, el, newId } from "./dom.js";

const MOST_SHOWN = 3000; // more only when asked for
const KEYS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20 };

/** A list of tokens; the one under the pointer, or chosen by the keyboard, is described below it. */
export class TokenList {
  constructor(label, tokens, classesOf, tellOf) {
    Object.assign(this, { tokens, classesOf, tellOf });
    this.prefix = newId("t");
    this.most = MOST_SHOWN;
    this.chosen = -1;
    this.line = el("output.token-line", {}, "Point at a token, or walk with the arrow keys.");
    this.list = el("div.tokens", { role: "listbox", tabindex: "0", "aria-label": label });
    this.list.addEventListener("pointerover", ({ target }) => {
      if (target.parentNode === this.list) this.choose([...this.list.children].indexOf(target));
    });
    this.list.addEventListener("keydown", (event) => this.walk(event));
    this.more = button("", () => this.showAll());
    this.node = el("div.token-box", {}, this.list, this.more, this.line);
    this.grow();
  }

  /** Show the tokens that came behind those that are shown. */
  grow() {
    const { tokens, list } = this;
    const from = list.children.length;
    list.append(...tokens.slice(from, this.most).map((token, at) => this.nodeOf(token, from + at)));
    const hidden = tokens.length - list.children.length;
    this.more.hidden = !hidden;
    this.more.textContent = `Show the other ${hidden}`;
  }

  showAll() {
    this.most = Infinity;
    this.grow();
  }

  nodeOf(token, place) {
    return tokenNode(token, `${this.prefix}-${place}`, this.classesOf(token, place));
  }

  choose(place) {
    const { list, chosen } = this;
    if (place < 0 || place >= list.children.length) return;
    list.children[chosen]?.setAttribute("aria-selected", "false");
    this.chosen = place;
    const node = list.children[place];
    node.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", node.id);
    this.line.replaceChildren(...this.tellOf(this.tokens[place], place));
  }

  walk(event) {
    const last = this.list.children.length - 1;
    const place = event.key === "Home" ? 0 : event.key === "End" ? last : this.chosen + KEYS[event.key];
    if (Number.isNaN(place)) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(place, last)));
    this.list.children[this.chosen]?.scrollIntoView({ block: "nearest" });
  }
}

function tokenNode(token, id, classes) {
  const node = el("span", { id, role: "option", "aria-selected": "false" }, shown(token.text));
  if (!token.text.trim()) node.setAttribute("aria-label", JSON.stringify(token.text)); // white space has no name
  node.className = ["token", ...classes].join(" ");
  if (token.logprob !== undefined) node.style.setProperty("--p", String(Math.exp(token.logprob)));
  return node;
}

/** White space is made visible; a line break still breaks the line. */
function shown(text) {
  return text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥") || "∅";
}

/** What is shown of a token of the prompt. */
export function tellPrompt(token, place, numCached) {
  const parts = [place < numCached ? "cached" : "computed"];
  if (token.control) parts.push("control token");
  return [el("code", {}, JSON.stringify(token.text)), ` token ${place}, id ${token.id}: ${parts.join(", ")}`];
}

/** What is shown of a token of the reply, with its likeliest alternatives. */
export function tellReply(token, place) {
  const parts = [token.forced ? "forced: the grammar admits no other" : token.accepted ? "drafted and accepted" : "chosen"];
  if (token.control) parts.push("control token");
  if (token.logprob !== undefined) parts.push(`the model gave it ${percent(token.logprob)}`);
  const tops = (token.top ?? []).map((one) => el("span.top", {}, el("code", {}, JSON.stringify(one.text)), ` ${percent(one.logprob)}`));
  return [el("code", {}, JSON.stringify(token.text)), ` token ${place}, id ${token.id}: ${parts.join(", ")} `, ...tops];
}

function percent(logprob) {
  const share = logprob === null ? 0 : Math.exp(logprob) * 100; // null: minus infinity
  return share >= 10 ? `${share.toFixed(0)} %` : share >= 0.01 ? `${share.toFixed(2)} %` : "below 0.01 %";
}
