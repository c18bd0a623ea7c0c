"""Conversations as agents hold them, made up by a seeded generator: awkward text, but no control token."""

import json
import random
from typing import Any

TEXTS = (
    "Hello.", "What is the weather in Paris?", "  leading and trailing  ", "\n\nlines around\n\n", "a < b > c",
    "> quoted", "ends with <", "|im_end|>", "<|im_", "x<|", "tool_call>", "<html><body>é</body></html>", "天气怎么样？",
    "emoji 👩‍👩‍👧 and e\u0301 and \u212b", '{"a": [1, 2.5, null]}', "tabs\tand\r\nreturns", "\"quoted\" 'text' \\n",
    "```python\nprint('<think')\n```", "", " ", "1234567890", "ﬁ ligature", "a\u0000b", "line\u2028separator",
    "'s 'RE 'll", "<tool", "</", "[gMASK", "/no", "|>",
)  # fmt: skip
WORDS = ("get_weather", "search", "run-it", "object", "name", "a1", "file_read", "think_hard", "tool")
KEYS = ("city", "unit", "q", "filters", "größe", "type", "name", "x-y", "items", "default", "$ref", "minimum")
# Without null: where transformers prints `None` of it, prompts here say `null`.
SCALARS: tuple[Any, ...] = (
    "Paris", "", "été", 0, -1, 3.5, 1e21, True, False, [None], "a\nb", "<b>", 'say "hi"', "東京",
)  # fmt: skip


class Inventor:
    """Draws conversations; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def conversation(self, thoughts: bool, calls: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Messages with arguments as objects, and tools (perhaps none)."""
        draw = self._random
        tools = [self.tool() for _ in range(draw.choice((0, 1, 1, 2, 5)))] if calls else []
        messages: list[dict[str, Any]] = []
        if draw.random() < 0.6:
            messages.append({"role": "system", "content": self.text()})
        for turn in range(draw.randint(1, 4)):
            messages.append({"role": "user", "content": self.text()})
            rounds = draw.choice((0, 1, 1, 3)) if tools else 0
            for _ in range(rounds):
                messages += self.round(thoughts)
            if turn < 3 and draw.random() < 0.7:
                messages.append(self.answer(thoughts))
        if messages[-1]["role"] == "assistant":
            messages.append({"role": "user", "content": self.text()})
        return messages, tools

    def text(self) -> str:
        """Some text; never a control token, though perhaps a part of one."""
        return " ".join(self._random.choice(TEXTS) for _ in range(self._random.choice((1, 1, 1, 2, 3))))

    def answer(self, thoughts: bool) -> dict[str, Any]:
        """A reply in words."""
        message = {"role": "assistant", "content": self.text()}
        if thoughts and self._random.random() < 0.5:
            message["reasoning_content"] = self.text()
        return message

    def round(self, thoughts: bool) -> list[dict[str, Any]]:
        """A message with calls, and their results in order."""
        draw = self._random
        calls = [
            {
                "id": f"functions.{draw.choice(WORDS)}:{i}",
                "type": "function",
                "function": {"name": draw.choice(WORDS), "arguments": self.object(2)},
            }
            for i in range(draw.choice((1, 1, 2, 4)))
        ]
        message = {**self.answer(thoughts), "tool_calls": calls}
        if draw.random() < 0.5:
            message["content"] = ""
        results = [{"role": "tool", "tool_call_id": call["id"], "content": self.text()} for call in calls]
        return [message, *results]

    def tool(self) -> dict[str, Any]:
        """A function with a schema, not always a tidy one. Nulls are left out of prompts, so it has none."""
        draw = self._random

        def keywords() -> dict[str, Any]:
            return {key: value for key, value in self.object(1).items() if "null" not in json.dumps(value)}

        properties = {
            key: {"type": draw.choice(("string", "integer", "object")), "description": self.text(), **keywords()}
            for key in draw.sample(KEYS, draw.randint(0, 4))
        }
        parameters = {"type": "object", "properties": properties, "required": list(properties)[:2]}
        function = {"name": draw.choice(WORDS), "description": self.text(), "parameters": parameters}
        return {"type": "function", "function": function}

    def object(self, depth: int) -> dict[str, Any]:
        """A JSON object, perhaps nested."""
        keys = [key for key in KEYS if key not in ("type", "name", "description")]
        return {key: self.value(depth) for key in self._random.sample(keys, self._random.randint(0, 3))}

    def value(self, depth: int) -> Any:
        """A JSON value."""
        kind = self._random.random()
        if depth and kind < 0.15:
            return self.object(depth - 1)
        if depth and kind < 0.3:
            return [self.value(depth - 1) for _ in range(self._random.randint(0, 3))]
        return self._random.choice(SCALARS)


def as_sent(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation as an OpenAI client sends it: arguments are strings of JSON."""
    return [
        {**message, "tool_calls": [_with_text_arguments(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
