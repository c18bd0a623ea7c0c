/** Anthropic's Messages. It has neither custom tools nor probabilities. */

import { isWhole, newCall, takeNotes } from "./reply.js";

export const name = "Messages";
export const path = "/v1/messages";
const NO_LIMIT = 1_000_000; // tokens: what the window leaves. A number is required, and -1 is no other server's.

/** What of these options and tools a request cannot say. */
export function leftOut({ options, tools }) {
  const custom = tools.filter((tool) => tool.custom).map((tool) => tool.name);
  return [...custom, ...(options.seed === null ? [] : ["the seed"]), ...(options.logprobs ? ["probabilities"] : [])];
}

/** The body of a request for the next reply. */
export function build({ system, turns, tools, options }, model) {
  const body = { model, max_tokens: options.maxTokens ?? NO_LIMIT, messages: turns.flatMap(messagesOf), stream: true };
  const offered = tools.filter((tool) => !tool.custom);
  if (system) body.system = system;
  if (offered.length) {
    body.tools = offered.map(toolOf);
    const choice = choiceOf(options.toolChoice, offered);
    if (!options.parallel && choice.type !== "none") choice.disable_parallel_tool_use = true;
    if (choice.type !== "auto" || !options.parallel) body.tool_choice = choice;
  }
  if (options.temperature !== null) body.temperature = options.temperature;
  if (options.thinking !== "auto") body.enable_thinking = options.thinking === "on";
  if (options.trace) body.toolwire = { trace: true };
  return body;
}

function messagesOf(turn) {
  if (turn.role === "user") return [{ role: "user", content: turn.text }];
  const calls = turn.calls.filter((call) => isWhole(call) && call.result !== null);
  const content = [];
  if (turn.thoughts && turn.signature) {
    content.push({ type: "thinking", thinking: turn.thoughts, signature: turn.signature });
  }
  if (turn.text) content.push({ type: "text", text: turn.text });
  for (const call of calls) {
    content.push({ type: "tool_use", id: call.id, name: call.name, input: inputOf(call) });
  }
  if (!turn.text && !calls.length) return [];
  const results = calls.map(resultOf);
  return [{ role: "assistant", content }, ...(calls.length ? [{ role: "user", content: results }] : [])];
}

function resultOf({ id, result }) {
  return { type: "tool_result", tool_use_id: id, content: result.text, ...(result.failed && { is_error: true }) };
}

function inputOf(call) {
  if (call.custom) return { input: call.arguments };
  try {
    return JSON.parse(call.arguments);
  } catch {
    return {};
  }
}

/** A tool as Messages has it. */
export function toolOf(tool) {
  const strict = tool.strict ? { strict: true } : {};
  return { name: tool.name, description: tool.description, input_schema: tool.parameters, ...strict };
}

function choiceOf(chosen, tools) {
  if (chosen === "required") return { type: "any" };
  return ["auto", "none"].includes(chosen) ? { type: chosen } : { type: "tool", name: chosen };
}

const FINISH = { end_turn: "stop", stop_sequence: "stop", tool_use: "tool_calls" };

/** Take one frame into the reply. */
export function read(frame, reply) {
  const event = JSON.parse(frame.data);
  switch (event.type) {
    case "content_block_start":
      if (event.content_block.type === "tool_use") {
        reply.calls.push(newCall(event.content_block.id, event.content_block.name, false));
      }
      break;
    case "content_block_delta":
      readDelta(event.delta, reply);
      break;
    case "content_block_stop":
      for (const call of reply.calls) call.done = true;
      break;
    case "message_delta":
      if (event.delta.stop_reason) reply.finish = FINISH[event.delta.stop_reason] ?? "length";
      reply.usage = usageOf(event.usage);
      takeNotes(reply, event.toolwire);
      break;
    case "error":
      reply.error = event.error;
      break;
  }
}

function readDelta(delta, reply) {
  if (delta.type === "text_delta") reply.text += delta.text;
  else if (delta.type === "thinking_delta") reply.thoughts += delta.thinking;
  else if (delta.type === "signature_delta") reply.signature = delta.signature;
  else if (delta.type === "input_json_delta") reply.calls.at(-1).arguments += delta.partial_json;
}

function usageOf(usage) {
  return {
    prompt: usage.input_tokens + usage.cache_read_input_tokens,
    cached: usage.cache_read_input_tokens,
    completion: usage.output_tokens,
    reasoning: usage.output_tokens_details?.thinking_tokens ?? 0,
  };
}
