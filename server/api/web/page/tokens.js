/** Tokens as text that can be read and walked through: control tokens, cached, forced, accepted, probabilities. */

import { el, newId } from "./dom.js";

const MOST_SHOWN = 3000; // more only when asked for
const KEYS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 20, ArrowUp: -20 };

/** A list of tokens; the one under the pointer, or chosen by the keyboard, is described in `line`. */
export function tokenList(label, tokens, classesOf, tellOf) {
  const prefix = newId("t");
  const line = el("output.token-line", {}, "Point at a token, or walk with the arrow keys.");
  const list = el("div.tokens", { role: "listbox", tabindex: "0", "aria-label": label });
  let chosen = -1;
  const choose = (place) => {
    if (place < 0 || place >= list.children.length) return;
    list.children[chosen]?.setAttribute("aria-selected", "false");
    chosen = place;
    const node = list.children[place];
    node.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", node.id);
    line.replaceChildren(...tellOf(tokens[place], place));
  };
  const append = (from, to) => {
    list.append(...tokens.slice(from, to).map((token, at) => tokenNode(token, `${prefix}-${from + at}`, classesOf(token, from + at))));
  };
  append(0, MOST_SHOWN);
  list.addEventListener("pointerover", ({ target }) => {
    if (target.parentNode === list) choose([...list.children].indexOf(target));
  });
  list.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    const place = event.key === "Home" ? 0 : event.key === "End" ? list.children.length - 1 : chosen + step;
    if (Number.isNaN(place)) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(place, list.children.length - 1)));
    list.children[chosen]?.scrollIntoView({ block: "nearest" });
  });
  const more = tokens.length > MOST_SHOWN ? el("button", { type: "button" }, `Show the other ${tokens.length - MOST_SHOWN}`) : null;
  more?.addEventListener("click", () => {
    append(MOST_SHOWN, tokens.length);
    more.remove();
  });
  return el("div.token-box", {}, list, more, line);
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
