// The AI SDK on Responses, its default for OpenAI: loops of tools, whole and streamed, each followed by a turn that sends
// the conversation back; then an answer of a schema. Told as JSON on stdout.
import { createOpenAI } from "@ai-sdk/openai";
import { Output, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [baseURL, id, question, thanks, naming] = process.argv.slice(2);
const model = createOpenAI({ baseURL, apiKey: "any" })(id);
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const tools = {
  get_weather: tool({
    description: "Get the current weather for a city",
    inputSchema: jsonSchema(city),
    execute: async ({ city }) => `${city}: 21 degrees and sunny`,
  }),
};
const kept = {};
const opaque = { store: false, include: ["reasoning.encrypted_content"] };
const told = [];
for (const openai of [kept, opaque]) {
  for (const streamed of [false, true]) {
    const options = { model, tools, maxRetries: 0, stopWhen: stepCountIs(3), providerOptions: { openai } };
    const ask = async (messages) => {
      if (!streamed) return await generateText({ ...options, messages });
      const failed = [];
      const stream = streamText({ ...options, messages, onError: ({ error }) => failed.push(error) });
      let text = "";
      for await (const piece of stream.textStream) text += piece;
      if (failed.length) throw failed[0];
      return { text, response: await stream.response, usage: await stream.totalUsage };
    };
    const messages = [{ role: "user", content: question }];
    const answered = await ask(messages);
    messages.push(...answered.response.messages, { role: "user", content: thanks });
    const again = await ask(messages);
    told.push({ answered: answered.text, again: again.text, total: again.usage.totalTokens });
  }
}
const first = await generateText({ model, tools, maxRetries: 0, prompt: question, stopWhen: stepCountIs(3) });
const previousResponseId = first.providerMetadata.openai.responseId;
const continued = await generateText({
  model,
  tools,
  maxRetries: 0,
  prompt: thanks,
  providerOptions: { openai: { previousResponseId } },
});
const sky = { type: "object", properties: { name: { type: "string" }, sky: { type: "string" } } };
const schema = jsonSchema({ ...sky, required: ["name", "sky"], additionalProperties: false });
const named = await generateText({ model, maxRetries: 0, prompt: naming, output: Output.object({ schema }) });
console.log(JSON.stringify({ told, continued: continued.text, named: named.output }));
