/** Requests to the server that sent this page, with the key that the user gave for this session. */

import { keptForTab } from "./store.js";

const KEY = "toolwire.key";

/** An error as the server, or the way to it, reported it. */
export class RequestError extends Error {
  constructor(status, message, code = null, param = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

let askForKey = async () => null;

/** Have this called where a key is needed: it returns one, or null. It is given the server's reason. */
export function setKeyPrompt(prompt) {
  let open = null; // one question at a time, whoever asks
  askForKey = (reason) => (open ??= prompt(reason).finally(() => (open = null)));
}

export function storeKey(key) {
  if (key) keptForTab.setItem(KEY, key);
  else keptForTab.removeItem(KEY);
}

export function hasKey() {
  return keptForTab.getItem(KEY) !== null;
}

/** The address of a path of the server, wherever the page was loaded from. */
export function addressOf(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI).href;
}

/** The reply to a request. Raises RequestError for every other status, after a key was asked for where one is missing. */
export async function request(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const key = keptForTab.getItem(KEY);
    const response = await send(path, body, signal, key);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.status !== 401 || quiet) throw error;
    if (keptForTab.getItem(KEY) !== key) continue; // given meanwhile
    storeKey(null);
    const given = await askForKey(error.message);
    if (!given) throw error;
    storeKey(given);
  }
}

export async function requestJson(path, options) {
  return (await request(path, options)).json();
}

async function send(path, body, signal, key) {
  const headers = { accept: "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(addressOf(path), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "The server does not answer. Is it still running?");
  }
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    return new RequestError(response.status, error.message, error.code ?? error.type, error.param);
  } catch {
    return new RequestError(response.status, text.slice(0, 500) || `The server answered ${response.status}.`);
  }
}

/** The frames of a stream of server-sent events, as `{ event, data }`. Raises RequestError where it breaks. */
export async function* framesOf(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      held += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = held.split(/\r?\n\r?\n/);
      held = parts.pop();
      for (const part of parts) {
        const frame = parseFrame(part);
        if (frame) yield frame;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => undefined); // it may have ended already
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "The connection broke in the middle of the reply.");
  }
}

function parseFrame(text) {
  const frame = { event: "", data: "" };
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith("event:")) frame.event = line.slice(6).trim();
    else if (line.startsWith("data:")) frame.data += (frame.data && "\n") + line.slice(5).replace(/^ /, "");
  }
  return frame.data ? frame : null;
}
