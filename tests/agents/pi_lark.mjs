// An extension of pi: a tool whose text is held by a Lark grammar, and which shows the file that the text names.
import { readFileSync } from "node:fs";

const INPUT = { type: "object", properties: { input: { type: "string" } }, required: ["input"], additionalProperties: false };
const GRAMMAR = 'start: "SHOW " NAME\nNAME: /[a-z]+\\.txt/\n';

export default function extend(pi) {
  pi.registerTool({
    name: "show",
    label: "Show",
    description: "Show a text file: SHOW and its name",
    parameters: INPUT,
    constrainedSampling: { type: "grammar", variants: { openai_lark: GRAMMAR } },
    async execute(id, { input }) {
      return { content: [{ type: "text", text: readFileSync(input.slice(5), "utf8") }], details: {} };
    },
  });
}
