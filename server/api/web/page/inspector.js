/** One reply in three views: what happened to it, its request, its frames. */

import { button, byId, copy, el, oncePerFrame } from "./dom.js";
import { TraceView } from "./trace_view.js";

const MOST_FRAMES_SHOWN = 500;
const TABS = [["trace", "What happened"], ["request", "Request"], ["frames", "Frames"]];

export class Inspector {
  constructor() {
    this.node = byId("inspector");
    this.tab = "trace";
    this.reply = null;
    this.followed = null; // the reply that was last shown by itself
    this.trace = null; // the view of what happened, while it is shown
    this.update = oncePerFrame(() => this.trace?.update());
    this.tabs = TABS.map(([name, text]) => el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "inspector-panel", click: () => this.choose(name) }, text));
    const list = el("div.tabs", { role: "tablist", "aria-label": "Of this reply", keydown: (event) => this.walk(event) }, this.tabs);
    this.panel = el("div", { role: "tabpanel", id: "inspector-panel", tabindex: "0" });
    this.node.replaceChildren(list, this.panel);
    this.show(null);
  }

  /** Show this reply, or what has changed of it. */
  show(reply) {
    if (reply && this.trace?.reply === reply) return this.trace.update();
    this.reply = reply;
    this.draw();
  }

  /** Show a reply while it is written, unless another one was chosen meanwhile. */
  follow(reply) {
    if (this.followed !== reply) {
      this.followed = reply;
      this.show(reply);
    } else if (this.reply === reply) this.update();
  }

  /** Show the end of a reply, unless another one was chosen meanwhile. */
  end(reply) {
    this.follow(reply);
    if (this.reply === reply) this.show(reply);
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
    this.trace = this.reply && this.tab === "trace" ? new TraceView(this.reply) : null;
    this.panel.replaceChildren(...this.nodes());
  }

  nodes() {
    if (!this.reply) return [el("p.caption", {}, "A reply shows here how it came about.")];
    if (this.trace) return [this.trace.node];
    return this.tab === "request" ? requestNodes(this.reply) : frameNodes(this.reply);
  }
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
