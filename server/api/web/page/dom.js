/** Elements made by script: text is always text, never HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** An element, as `el("p.note", { title: "..." }, "text", node)`; functions are listeners, `null` children are left out. */
export function el(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  return filled(node, properties, children);
}

/** An element of a drawing. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(node, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") node.addEventListener(key, value);
    else if (key === "value" || key === "checked" || key === "disabled" || key === "open") node[key] = value;
    else if (typeof value === "boolean" && !key.startsWith("aria-")) node.toggleAttribute(key, value);
    else node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A button with a text. */
export function button(text, click, properties = {}) {
  return el("button", { type: "button", click, ...properties }, text);
}

/** A field under its label. */
export function labelled(text, field) {
  field.id ||= newId("f");
  return el("div.field", {}, el("label", { for: field.id }, text), field);
}

/** A choice of one of these `[value, text]`. */
export function choice(options, chosen, change) {
  const nodes = options.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
  const select = el("select", { change: () => change(select.value) }, nodes);
  return select;
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Say something to a screen reader, without taking the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** A random id. */
export function newId(prefix) {
  const numbers = crypto.getRandomValues(new Uint32Array(3));
  return prefix + [...numbers].map((number) => number.toString(36).padStart(7, "0")).join("");
}

/** A call of `work` at the next frame, however often it is asked for. */
export function oncePerFrame(work) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      work();
    });
  };
}

/** Copy a text; where the browser refuses (plain HTTP), select it. */
export async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch {
    getSelection().selectAllChildren(node);
    announce("Selected; copy it with the keyboard");
  }
}
