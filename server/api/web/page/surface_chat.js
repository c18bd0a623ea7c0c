/** Chat Completions. */

import { isJson } from "./json_text.js";
import { isWhole, newCall, takeNotes } from "./reply.js";

export const name = "Chat Completions";
export const path = "/v1/chat/completions";

/** The body of a request for the next reply. */
export function build({ system, turns, tools, options }, model) {
  const messages = system ? [{ role: "system", content: system }] : [];
  const body = { model, messages: [...messages, ...turns.flatMap(messagesOf)], stream: true };
  body.stream_options = { include_usage: true };
  if (tools.length) {
    body.tools = tools.map(toolOf);
    if (options.toolChoice !== "auto") body.tool_choice = choiceOf(options.toolChoice, tools);
    if (!options.parallel) body.parallel_tool_calls = false;
  }
  if (options.temperature !== null) body.temperature = options.temperature;
  if (options.maxTokens !== null) body.max_completion_tokens = options.maxTokens;
  if (options.seed !== null) body.seed = options.seed;
  if (options.thinking !== "auto") body.enable_thinking = options.thinking === "on";
  if (options.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  if (options.trace) body.toolwire = { trace: true };
  return body;
}

function messagesOf(turn) {
  if (turn.role === "user") return [{ role: "user", content: turn.text }];
  const calls = turn.calls.filter((call) => isWhole(call) && call.result !== null);
  if (!calls.length && !turn.text) return [];
  const message = { role: "assistant", content: turn.text || null };
  if (turn.thoughts) message.reasoning_content = turn.thoughts;
  if (calls.length) message.tool_calls = calls.map(callOf);
  const results = calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result.text }));
  return [message, ...results];
}

function callOf(call) {
  return call.custom
    ? { id: call.id, type: "custom", custom: { name: call.name, input: call.arguments } }
    : { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } };
}

/** A tool as Chat Completions has it. */
export function toolOf(tool) {
  const head = { name: tool.name, ...(tool.description && { description: tool.description }) };
  if (!tool.custom) {
    const strict = tool.strict ? { strict: true } : {};
    return { type: "function", function: { ...head, parameters: tool.parameters, ...strict } };
  }
  const grammar = { syntax: tool.syntax, definition: tool.definition };
  return { type: "custom", custom: { ...head, ...(tool.definition && { format: { type: "grammar", grammar } }) } };
}

function choiceOf(chosen, tools) {
  const tool = tools.find((one) => one.name === chosen);
  if (!tool) return chosen;
  const kind = tool.custom ? "custom" : "function";
  return { type: kind, [kind]: { name: chosen } };
}

/** Take one frame into the reply. */
export function read(frame, reply) {
  if (frame.data === "[DONE]") return;
  const chunk = JSON.parse(frame.data);
  if (chunk.error) {
    reply.error = chunk.error;
    return;
  }
  if (chunk.usage) reply.usage = usageOf(chunk.usage);
  for (const { delta, finish_reason: finish } of chunk.choices) {
    if (delta.content) reply.text += delta.content;
    if (delta.reasoning_content) reply.thoughts += delta.reasoning_content;
    for (const piece of delta.tool_calls ?? []) readCall(piece, reply);
    if (finish) {
      reply.finish = finish;
      for (const call of reply.calls) call.done = finish !== "length" || call !== reply.calls.at(-1) || call.custom || isJson(call.arguments);
    }
  }
  takeNotes(reply, chunk.toolwire);
}

function readCall(piece, reply) {
  const part = piece.custom ?? piece.function;
  if (piece.id) {
    for (const call of reply.calls) call.done = true;
    reply.calls[piece.index] = newCall(piece.id, part.name, piece.type === "custom");
  }
  reply.calls[piece.index].arguments += part.arguments ?? part.input ?? "";
}

function usageOf(usage) {
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details.cached_tokens,
    completion: usage.completion_tokens,
    reasoning: usage.completion_tokens_details.reasoning_tokens,
  };
}
