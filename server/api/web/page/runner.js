/** Runs functions of the user in a frame of their own origin, without network and without this page's data. */

import { addressOf } from "./api.js";
import { el } from "./dom.js";

const LIMIT_MS = 5000;
const MOST_RESULT = 200_000; // characters

let frame = null; // { node, ready, listens }: it is `ready` once it listens
let lastId = 0;
const waiting = new Map();

addEventListener("message", ({ source, data }) => {
  if (!frame || source !== frame.node.contentWindow) return;
  if (data.ready) frame.listens();
  else {
    waiting.get(data.id)?.(data);
    waiting.delete(data.id);
  }
});

function openFrame() {
  const src = addressOf("/web/sandbox.html");
  const node = el("iframe", { sandbox: "allow-scripts", src, title: "Functions run here", hidden: true });
  let listens;
  const ready = new Promise((resolve) => (listens = resolve));
  document.body.append(node);
  return { node, ready, listens };
}

/** What the function returns for this input, as text. Raises Error with what went wrong. */
export async function runFunction(source, input) {
  frame ??= openFrame();
  const { node, ready } = frame;
  await ready;
  const id = (lastId += 1);
  const result = await new Promise((resolve) => {
    waiting.set(id, resolve);
    node.contentWindow.postMessage({ id, source, input, limitMs: LIMIT_MS }, "*");
  });
  if (typeof result.text !== "string") throw new Error(`The function failed: ${String(result.fault).slice(0, 500)}`);
  if (result.text.length > MOST_RESULT) throw new Error(`The function returned more than ${MOST_RESULT} characters.`);
  return result.text;
}
