/** Tools to begin with, each with a function that answers it and a message that calls it. */

function tool(name, description, properties, source, more = {}) {
  return {
    name,
    description,
    custom: false,
    parameters: { type: "object", properties, required: Object.keys(properties), additionalProperties: false },
    strict: true,
    syntax: "lark",
    definition: "",
    enabled: true,
    answer: { mode: "function", value: "", source },
    ...more,
  };
}

const text = (description) => ({ type: "string", description });

const WEATHER = `({ city }) => ({
  temperature: 10 + (city.length * 7) % 20,
  condition: ["sunny", "cloudy", "rain"][city.length % 3],
})`;

const CALCULATE = `({ operation, a, b }) => {
  const results = { add: a + b, subtract: a - b, multiply: a * b, divide: a / b };
  return { result: results[operation] };
}`;

const DICE = `({ dice, sides }) => {
  const one = () => 1 + Math.floor(Math.random() * sides);
  return { rolled: Array.from({ length: dice }, one) };
}`;

const DATE = `(text) => {
  const day = new Date(text + "T00:00:00Z");
  return Number.isNaN(+day) ? "no such day" : day.toUTCString().slice(0, 16);
}`;

export const EXAMPLES = [
  {
    title: "Weather",
    message: "What is the weather in Paris?",
    tools: [tool("get_weather", "Get the current weather for a city", { city: text("Name of the city") }, WEATHER)],
  },
  {
    title: "Calculator",
    message: "Multiply 17 by 23.",
    tools: [
      tool(
        "calculate",
        "Calculate with two numbers",
        {
          operation: { type: "string", enum: ["add", "subtract", "multiply", "divide"] },
          a: { type: "number" },
          b: { type: "number" },
        },
        CALCULATE,
      ),
    ],
  },
  {
    title: "Dice",
    message: "Roll 3 dice with 6 sides.",
    tools: [
      tool(
        "roll_dice",
        "Roll dice",
        { dice: { type: "integer", minimum: 1, maximum: 20 }, sides: { type: "integer", minimum: 2, maximum: 100 } },
        DICE,
      ),
    ],
  },
  {
    title: "E-mail, answered by hand",
    message: "Send an e-mail to ada@example.com with the subject Lunch and the text See you at noon.",
    tools: [
      tool(
        "send_email",
        "Send an e-mail",
        { to: text("Address"), subject: text("Subject"), body: text("Text") },
        "",
        { answer: { mode: "hand", value: '{"sent": true}', source: "" } },
      ),
    ],
  },
  {
    title: "A date, by a grammar",
    message: "Which day of the week is 2026-11-26?",
    tools: [
      tool("day_of_week", "Tell the day of the week. Takes a date as YYYY-MM-DD.", {}, DATE, {
        custom: true,
        strict: false,
        syntax: "regex",
        definition: "20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
      }),
    ],
  },
];
