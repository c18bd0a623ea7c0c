// A streamed tool loop with the openai SDK for Node: npm install && node tool_loop.mjs [URL [QUESTION]]
import OpenAI from "openai";

const [url = "http://127.0.0.1:8000/v1", question = "What is the weather in Paris?"] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: process.env.TOOLWIRE_API_KEY || "none" });
const model = (await client.models.list()).data[0].id;
const MAX_ROUNDS = 10;

const functions = {
  get_weather: ({ city }) => ({ city, weather: "sunny", temperature: 21 }),
};
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the current weather for a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string", description: "Name of the city" } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];

const messages = [{ role: "user", content: question }];
for (let round = 0; round < MAX_ROUNDS; round++) {
  const stream = client.chat.completions.stream({ model, messages, tools });
  stream.on("content", (piece) => process.stdout.write(piece));
  const message = await stream.finalMessage();
  messages.push(message);
  if (!message.tool_calls?.length) break;
  for (const { id, function: { name, arguments: text } } of message.tool_calls) {
    const call = functions[name];
    const result = JSON.stringify(call ? call(JSON.parse(text)) : { error: `there is no tool ${name}` });
    console.log(`${name}(${text}) -> ${result}`);
    messages.push({ role: "tool", tool_call_id: id, content: result });
  }
}
console.log();
