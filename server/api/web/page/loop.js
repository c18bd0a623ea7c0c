/** The loop of a conversation: a reply, the results of its calls, the next reply, until the model answers. */

import { addressOf, framesOf, request, requestJson, RequestError } from "./api.js";
import { offeredTools } from "./conversation.js";
import { announce } from "./dom.js";
import { countTrace, isWhole, newReply } from "./reply.js";
import { runFunction } from "./runner.js";
import { SURFACES } from "./surfaces.js";

const ENDED = ["tool_calls", "stop"]; // by the model
const MOST_ROUNDS = 20; // without a word of the user
const MOST_FRAMES = 2_000_000; // characters of frames kept for one reply
const LONGEST_FRAME = 20_000; // characters kept of one frame
const MOST_RECORDED = 50; // replies whose traces and frames are kept

/** Writes replies into a conversation. Its events: `reply` (it grew), `end`, `busy`, `limit` (of rounds). */
export class Loop extends EventTarget {
  constructor(conversation) {
    super();
    this.conversation = conversation;
    this.model = "";
    this.abort = null;
    this.rounds = 0;
    this.work = Promise.resolve(); // until nothing is written
  }

  get busy() {
    return this.abort !== null;
  }

  /** The model that the server serves now. */
  async readModel() {
    this.model = (await requestJson("/v1/models")).data[0].id;
    return this.model;
  }

  /** A message of the user, and what follows. */
  async say(text) {
    this.conversation.turns.push({ role: "user", text });
    this.conversation.changed();
    this.rounds = 0;
    await this.go();
  }

  /** Replies and results until the model answers, a call waits for the user, or something fails. */
  async go() {
    if (this.busy) return;
    this.abort = new AbortController();
    this.tell("busy");
    const work = this.write();
    this.work = work.catch(() => undefined); // who waits for it to end only; the fault goes to who began it
    await work;
  }

  async write() {
    const { signal } = this.abort;
    try {
      do {
        this.rounds += 1;
        const reply = await this.reply();
        await Promise.race([this.answerCalls(reply), aborted(signal)]);
        if (signal.aborted) return;
        this.conversation.changed();
        if (!this.mayGoOn(reply)) return;
      } while (this.rounds < MOST_ROUNDS);
      this.tell("limit", MOST_ROUNDS);
    } finally {
      this.abort = null;
      this.tell("busy");
      this.conversation.changed();
    }
  }

  stop() {
    this.abort?.abort();
  }

  /** Stop, and wait until nothing is written. */
  async halt() {
    this.stop();
    await this.work;
  }

  /** Record the result of a call that waited for the user, and go on once all calls of the reply have theirs. */
  async answer(call, text) {
    call.result = { text, source: "hand" };
    this.conversation.changed();
    const reply = this.conversation.turns.at(-1);
    if (!this.busy && reply.calls?.includes(call) && this.isAnswered(reply)) {
      this.rounds = 0;
      await this.go();
    }
  }

  /** Whether the loop goes on by itself: the model ended the reply, and all its calls are answered. */
  mayGoOn(reply) {
    return ENDED.includes(reply.finish) && this.isAnswered(reply);
  }

  /** Whether all calls that can be answered are; a reply that was cut off goes on after the user's own results. */
  isAnswered(reply) {
    const calls = reply.calls.filter(isWhole);
    return this.conversation.options.loop && calls.length > 0 && calls.every((call) => call.result !== null);
  }

  /** The next reply, whole or cut. */
  async reply() {
    const { conversation } = this;
    const surface = SURFACES[conversation.options.surface];
    const { system, turns, options } = conversation;
    const body = surface.build({ system, turns, options, tools: offeredTools(conversation) }, this.model);
    const reply = newReply();
    reply.raw = { url: addressOf(surface.path), body, frames: [], size: 0, dropped: 0 };
    turns.push(reply);
    for (const old of turns.slice(0, -MOST_RECORDED)) Object.assign(old, old.raw ? { raw: null, trace: null } : {});
    conversation.changed();
    try {
      body.model ||= await this.readModel();
      const response = await this.send(surface.path, body);
      reply.raw.id = response.headers.get("x-request-id");
      for await (const frame of framesOf(response)) {
        keepFrame(reply.raw, frame);
        surface.read(frame, reply);
        if (hasBegun(reply)) reply.times.first ??= performance.now();
        this.tell("reply", reply);
      }
      if (reply.error) reply.finish = "error";
      else if (reply.finish === null) throw new RequestError(0, "The stream ended before the reply did.");
    } catch (error) {
      this.cut(reply, error);
    }
    reply.usage ??= countTrace(reply.trace);
    reply.times.end = performance.now();
    this.tell("end", reply);
    announce(summary(reply));
    return reply;
  }

  /** Send a request; a server started with `--strict` knows no traces, and gets it again without. */
  async send(path, body) {
    const { signal } = this.abort;
    try {
      return await request(path, { body, signal });
    } catch (error) {
      if (!body.toolwire || error.status !== 400 || !error.message.includes("toolwire")) throw error;
      delete body.toolwire;
      this.conversation.options.trace = false;
      this.conversation.changed();
      return request(path, { body, signal });
    }
  }

  cut(reply, error) {
    const stopped = error.name === "AbortError";
    reply.finish = stopped ? "stopped" : error.status ? "error" : "interrupted";
    if (!stopped) reply.error = { message: error.message, code: error.code, param: error.param, status: error.status };
    if (!stopped && !(error instanceof RequestError)) throw error; // a fault of this page
  }

  /** Answer the calls of a reply that need nobody. */
  async answerCalls(reply) {
    if (!ENDED.includes(reply.finish)) return;
    await Promise.all(reply.calls.filter((call) => isWhole(call)).map((call) => this.answerCall(call)));
  }

  async answerCall(call) {
    const tool = this.conversation.tools.find((one) => one.name === call.name);
    if (tool?.answer.mode === "value") call.result = { text: tool.answer.value, source: "value" };
    if (tool?.answer.mode === "function") {
      const { signal } = this.abort;
      const result = await functionResult(tool, call);
      if (!signal.aborted) call.result = result;
    }
    this.tell("reply");
  }

  tell(type, reply = null) {
    this.dispatchEvent(new CustomEvent(type, { detail: reply }));
  }
}

function aborted(signal) {
  return new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
}

/** The result of a tool's function; its failure is a result too, which the model reads. */
export async function functionResult(tool, call) {
  try {
    const input = call.custom ? call.arguments : JSON.parse(call.arguments);
    return { text: await runFunction(tool.answer.source, input), source: "function" };
  } catch (error) {
    return { text: JSON.stringify({ error: error.message }), source: "function", failed: true };
  }
}

/** Whether its first token is there, which need not have written anything yet. */
function hasBegun({ text, thoughts, calls, trace }) {
  return text !== "" || thoughts !== "" || calls.length > 0 || trace?.tokens.length > 0;
}

/** Keep a frame, a long one, such as that of a long prompt, in part. */
function keepFrame(raw, { event, data }) {
  const cut = data.length - LONGEST_FRAME;
  const kept = cut > 0 ? `${data.slice(0, LONGEST_FRAME)} … ${cut} characters more` : data;
  raw.size += kept.length;
  if (raw.size < MOST_FRAMES) raw.frames.push({ event, data: kept, at: performance.now() });
  else raw.dropped += 1;
}

function summary(reply) {
  if (reply.error) return `Failed: ${reply.error.message}`;
  const names = reply.calls.map((call) => call.name);
  if (names.length) return `The model calls ${names.join(", ")}`;
  return reply.finish === "stopped" ? "Stopped" : "The model has answered";
}
