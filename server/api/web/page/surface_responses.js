/** Responses, without keeping anything on the server. */

import { isWhole, newCall, takeNotes } from "./reply.js";

export const name = "Responses";
export const path = "/v1/responses";

/** The body of a request for the next reply. */
export function build({ system, turns, tools, options }, model) {
  const body = { model, input: turns.flatMap(itemsOf), stream: true, store: false };
  if (system) body.instructions = system;
  if (tools.length) {
    body.tools = tools.map(toolOf);
    if (options.toolChoice !== "auto") body.tool_choice = choiceOf(options.toolChoice, tools);
    if (!options.parallel) body.parallel_tool_calls = false;
  }
  if (options.temperature !== null) body.temperature = options.temperature;
  if (options.maxTokens !== null) body.max_output_tokens = options.maxTokens;
  if (options.seed !== null) body.seed = options.seed;
  if (options.thinking !== "auto") body.enable_thinking = options.thinking === "on";
  if (options.logprobs) Object.assign(body, { top_logprobs: 5, include: ["message.output_text.logprobs"] });
  if (options.trace) body.toolwire = { trace: true };
  return body;
}

function itemsOf(turn) {
  if (turn.role === "user") return [{ type: "message", role: "user", content: turn.text }];
  const items = [];
  const calls = turn.calls.filter((call) => isWhole(call) && call.result !== null);
  if (turn.thoughts && (turn.text || calls.length)) {
    items.push({ type: "reasoning", summary: [], content: [{ type: "reasoning_text", text: turn.thoughts }] });
  }
  if (turn.text) {
    items.push({ type: "message", role: "assistant", content: [{ type: "output_text", text: turn.text }] });
  }
  for (const call of calls) {
    items.push(
      call.custom
        ? { type: "custom_tool_call", call_id: call.id, name: call.name, input: call.arguments }
        : { type: "function_call", call_id: call.id, name: call.name, arguments: call.arguments },
    );
  }
  for (const call of calls) {
    const type = call.custom ? "custom_tool_call_output" : "function_call_output";
    items.push({ type, call_id: call.id, output: call.result.text });
  }
  return items;
}

/** A tool as Responses has it. */
export function toolOf(tool) {
  const head = { name: tool.name, ...(tool.description && { description: tool.description }) };
  if (!tool.custom) return { type: "function", ...head, parameters: tool.parameters, strict: tool.strict };
  const format = { type: "grammar", syntax: tool.syntax, definition: tool.definition };
  return { type: "custom", ...head, ...(tool.definition && { format }) };
}

function choiceOf(chosen, tools) {
  const tool = tools.find((one) => one.name === chosen);
  return tool ? { type: tool.custom ? "custom" : "function", name: chosen } : chosen;
}

const FINISH = { "response.completed": "stop", "response.incomplete": "length", "response.failed": "error" };

/** Take one frame into the reply. */
export function read(frame, reply) {
  const event = JSON.parse(frame.data);
  switch (event.type) {
    case "response.output_text.delta":
      reply.text += event.delta;
      break;
    case "response.reasoning_text.delta":
      reply.thoughts += event.delta;
      break;
    case "response.output_item.added": {
      const { item } = event;
      const custom = item.type === "custom_tool_call";
      if (custom || item.type === "function_call") reply.calls.push(newCall(item.call_id, item.name, custom));
      break;
    }
    case "response.function_call_arguments.delta":
    case "response.custom_tool_call_input.delta":
      reply.calls.at(-1).arguments += event.delta;
      break;
    case "response.output_item.done":
      if (event.item.call_id) reply.calls.find((call) => call.id === event.item.call_id).done = event.item.status !== "incomplete";
      break;
    case "toolwire:trace":
      takeNotes(reply, event.toolwire);
      break;
    case "error":
      reply.error = event;
      break;
    default:
      if (event.type in FINISH) readEnd(event, reply);
  }
}

function readEnd({ type, response }, reply) {
  reply.finish = type === "response.completed" && reply.calls.length ? "tool_calls" : FINISH[type];
  if (response.error) reply.error = response.error;
  if (response.usage) {
    reply.usage = {
      prompt: response.usage.input_tokens,
      cached: response.usage.input_tokens_details.cached_tokens,
      completion: response.usage.output_tokens,
      reasoning: response.usage.output_tokens_details.reasoning_tokens,
    };
  }
  takeNotes(reply, response.toolwire);
}
