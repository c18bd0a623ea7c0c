// The openai SDK for Node against a server: a streamed tool loop, call and answer twice, told as JSON on stdout.
import OpenAI from "openai";

const [baseURL, model, parallel] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the current weather for a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  },
];
const messages = [{ role: "user", content: "What is the weather in Paris and in Rome?" }];
const rounds = [];
for (const choice of ["required", "none", { type: "function", function: { name: "get_weather" } }, "none"]) {
  const stream = client.chat.completions.stream({
    model,
    messages,
    tools,
    tool_choice: choice,
    temperature: 0,
    max_tokens: 300,
    parallel_tool_calls: parallel === "parallel",
    stream_options: { include_usage: true },
  });
  const completion = await stream.finalChatCompletion();
  const message = completion.choices[0].message;
  rounds.push({
    finish: completion.choices[0].finish_reason,
    content: message.content,
    calls: (message.tool_calls ?? []).map((call) => [call.id, call.function.name, call.function.arguments]),
    total: completion.usage.total_tokens,
  });
  messages.push(message);
  if (choice === "none") messages.push({ role: "user", content: "And what is the weather in Oslo?" });
  for (const call of message.tool_calls ?? []) {
    messages.push({ role: "tool", tool_call_id: call.id, content: '{"temperature": 21, "sky": "sunny"}' });
  }
}
console.log(JSON.stringify(rounds));
