/** Markdown as DOM nodes. HTML in the text stays text, images become links, and links lead to the web or to mail only. */

import { el } from "./dom.js";

const MOST_DEPTH = 8;
// Patterns are such that no text makes them slow: what would be ambiguous is decided by code.
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?=\s)/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,7})([-*+]|\d{1,9}[.)])(\s+|$)/;
const LONGEST_TABLE_RULE = 500;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** A view of a text that grows: only what can still change, the last two blocks, is rendered again. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.reset();
  }

  reset() {
    this.text = "";
    this.tailStart = 0; // of the last but one block, in characters
    this.numSettled = 0; // nodes of the blocks before it
    this.container.replaceChildren();
  }

  /** Show this text. */
  update(text) {
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.reset();
    this.text = text;
    const blocks = parseBlocks(text.slice(this.tailStart));
    while (this.container.childNodes.length > this.numSettled) this.container.lastChild.remove();
    this.container.append(...blocks.map((block) => renderBlock(block, 0)));
    if (blocks.length > 2) {
      this.numSettled += blocks.length - 2;
      this.tailStart += blocks.at(-2).start;
    }
  }
}

/** The blocks of a text, each with the place where it starts. */
export function parseBlocks(text) {
  const lines = text.split("\n").map((line) => line.replace(/\r$/, ""));
  const starts = [];
  let offset = 0;
  for (const line of text.split("\n")) {
    starts.push(offset);
    offset += line.length + 1;
  }
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, end] = readBlock(lines, at);
    blocks.push({ ...block, start: starts[at] });
    at = end;
  }
  return blocks;
}

function readBlock(lines, at) {
  const line = lines[at];
  if (isFence(line)) return readCode(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: withoutMarks(line.slice(heading[0].length)) }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (QUOTE.test(line)) return readQuote(lines, at);
  if (ITEM.test(line)) return readList(lines, at);
  if (line.includes("|") && isTableRule(lines[at + 1] ?? "")) return readTable(lines, at);
  return readParagraph(lines, at);
}

/** Whether a line opens code: no backtick may follow backticks. */
function isFence(line) {
  const fence = FENCE.exec(line);
  return fence !== null && (fence[1][0] === "~" || !line.slice(fence[0].length).includes("`"));
}

function isTableRule(line) {
  return line.length <= LONGEST_TABLE_RULE && TABLE_RULE.test(line);
}

/** A heading without the marks that may close it. */
function withoutMarks(text) {
  const words = text.trim().split(" ");
  if (words.length > 1 && !words.at(-1).replaceAll("#", "")) words.pop();
  return words.join(" ").trim();
}

function readCode(lines, at) {
  const [opened, fence] = FENCE.exec(lines[at]);
  const [language] = lines[at].slice(opened.length).trim().split(/\s/, 1);
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");
  while (end < lines.length && !closes(lines[end])) end += 1;
  return [{ kind: "code", language, text: lines.slice(at + 1, end).join("\n") }, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  return [{ kind: "quote", text: lines.slice(at, end).map((line) => line.replace(QUOTE, "")).join("\n") }, end];
}

function readList(lines, at) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const line = lines[end];
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent.length + 1) {
      if (/\d/.test(item[2]) !== ordered || RULE.test(line)) break;
      items.push([line.slice(item[0].length)]);
    } else if (!line.trim()) {
      const next = lines[end + 1];
      if (next === undefined || !(ITEM.test(next) || /^ {2,}\S/.test(next))) break;
      items.at(-1).push("");
    } else if (/^ {2,}/.test(line) || (lines[end - 1].trim() && !startsBlock(line))) {
      items.at(-1).push(line.replace(/^ {1,4}/, ""));
    } else break;
    end += 1;
  }
  return [{ kind: "list", ordered, first: parseInt(marker, 10), items: items.map((item) => item.join("\n")) }, end];
}

function readTable(lines, at) {
  let end = at;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = lines.slice(at, end).filter((_, place) => place !== 1);
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  return [{ kind: "table", rows: rows.map(cells) }, end];
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines[end])) end += 1;
  return [{ kind: "paragraph", text: lines.slice(at, end).join("\n") }, end];
}

function startsBlock(line) {
  return isFence(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function renderBlock(block, depth) {
  const inner = (text) => (depth < MOST_DEPTH ? parseBlocks(text).map((one) => renderBlock(one, depth + 1)) : [text]);
  switch (block.kind) {
    case "code":
      return el("pre", { tabindex: "0", "aria-label": block.language || "code" }, el("code", {}, block.text));
    case "heading":
      return el(`h${Math.min(6, block.level + 2)}`, {}, inline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, inner(block.text));
    case "list": {
      const items = block.items.map((item) => el("li", {}, tight(inner(item))));
      return block.ordered ? el("ol", { start: String(block.first) }, items) : el("ul", {}, items);
    }
    case "table": {
      const [head, ...rows] = block.rows;
      const row = (cells, tag) => el("tr", {}, cells.map((cell) => el(tag, {}, inline(cell))));
      const table = el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, rows.map((one) => row(one, "td"))));
      return el("div.scrolls", { tabindex: "0", role: "region", "aria-label": "table" }, table);
    }
    default:
      return el("p", {}, inline(block.text));
  }
}

/** The nodes of an item, without a paragraph around the only one. */
function tight(nodes) {
  const [first, ...rest] = nodes;
  return first instanceof HTMLParagraphElement ? [...first.childNodes, ...rest] : nodes;
}

/** The nodes of a line of text: code, emphasis, links. */
export function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // delimiters that have no partner further on
  let plain = "";
  let at = 0;
  const add = (node, end) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
    at = end;
  };
  while (at < text.length) {
    const found = spanAt(text, at, depth, missing);
    if (found) add(...found);
    else {
      const escaped = text[at] === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "");
      plain += escaped ? text[at + 1] : text[at];
      at += escaped ? 2 : 1;
    }
  }
  if (plain) nodes.push(plain);
  return nodes;
}

/** The element that starts here and where it ends, if one does. */
function spanAt(text, at, depth, missing) {
  switch (text[at]) {
    case "`":
      return codeAt(text, at, missing);
    case "*":
    case "_":
    case "~":
      return depth < MOST_DEPTH ? emphasisAt(text, at, depth, missing) : null;
    case "!":
    case "[":
      return linkAt(text, at);
    case "<":
    case "h":
      return addressAt(text, at);
    default:
      return null;
  }
}

function codeAt(text, at, missing) {
  let length = 1;
  while (text[at + length] === "`") length += 1;
  const fence = "`".repeat(length);
  const end = missing.has(fence) ? -1 : text.indexOf(fence, at + length);
  if (end < 0) {
    missing.add(fence);
    return [fence, at + length];
  }
  return [el("code", {}, text.slice(at + length, end).replace(/^ (.*) $/, "$1")), end + length];
}

const EMPHASIS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

function emphasisAt(text, at, depth, missing) {
  const double = text.slice(at, at + 2);
  const mark = Object.hasOwn(EMPHASIS, double) ? double : text[at];
  if (!Object.hasOwn(EMPHASIS, mark) || missing.has(mark) || !/\S/.test(text[at + mark.length] ?? " ")) return null;
  if (mark[0] === "_" && /\w/.test(text[at - 1] ?? "")) return null;
  let end = text.indexOf(mark, at + mark.length + 1);
  if (end < 0) missing.add(mark);
  for (let tries = 0; end >= 0 && tries < 20; tries += 1) {
    const apart = mark.length > 1 || text[end + 1] !== mark;
    const inWord = mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "");
    if (/\S/.test(text[end - 1]) && apart && !inWord) {
      return [el(EMPHASIS[mark], {}, inline(text.slice(at + mark.length, end), depth + 1)), end + mark.length];
    }
    end = text.indexOf(mark, end + (apart ? 1 : 2));
  }
  return null;
}

const LINK = /!?\[([^[\]\n]{0,500})\]\(\s{0,9}<?([^\s<>()]{1,2000})>?(?:\s+"[^"\n]{0,500}")?\s{0,9}\)/y;

function linkAt(text, at) {
  LINK.lastIndex = at;
  const match = LINK.exec(text);
  if (!match) return null;
  const address = safeAddress(match[2]);
  return [address ? link(address, match[1] || match[2]) : match[0], LINK.lastIndex];
}

const ADDRESS = /<(https?:\/\/[^\s<>]{1,2000})>|https?:\/\/[^\s<>"'`)\]]{1,2000}/y;

function addressAt(text, at) {
  ADDRESS.lastIndex = at;
  const match = ADDRESS.exec(text);
  if (!match || (text[at] === "h" && /\w/.test(text[at - 1] ?? ""))) return null;
  const shown = match[1] ?? match[0].replace(/[.,;:!?]+$/, "");
  const address = safeAddress(shown);
  return address ? [link(address, shown), match[1] ? ADDRESS.lastIndex : at + shown.length] : null;
}

function link(address, shown) {
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer", title: address }, shown);
}

/** The address if it leads to the web or to mail, else null. */
export function safeAddress(text) {
  try {
    const address = new URL(text);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
}
