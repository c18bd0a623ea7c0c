"""Histories as agents make them, through every family's template: no crash, no lost text, refusals that name a place.

NUM_CASES seeds a family, 0 and up, half of them with `--repair-history`; NUM_LONG_CASES with `--long`.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server.api.body import read_lenient
from server.api.chat.schemas import read_request
from server.api.chat.to_request import RequestMapper
from server.api.errors import RequestRefused
from server.api.sampling import SamplingMapper
from server.checkpoint.checkpoint import Checkpoint, SamplingDefaults
from server.errors import Rejected
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from tests.families import SOME_FAMILIES, family_checkpoint

NUM_CASES, NUM_LONG_CASES = 20, 3000
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
EXTRAS: tuple[dict[str, Any], ...] = (
    {"cache_control": {"type": "ephemeral"}}, {"id": "msg_1"}, {"refusal": None}, {"annotations": []}, {"audio": None},
    {"function_call": None}, {"provider_specific_fields": {}}, {"reasoning_details": []}, {"index": 0}, {"name": None},
    {"tool_plan": ""}, {"images": []}, {"extra_content": {"google": {"thought_signature": "x"}}}, {"tool_calls": None},
)  # fmt: skip
NAMES = ("get_weather", "functions.get_weather:0", "read file", "", "mcp.server/tool", "get_weather\n", "日本")
BROKEN = ("{", "not json", '{"a": 1}}', "", "[]", "null", '"{}"', '{"a": "\\ud83d"}', '{"a": 1e999}', '{"a":1,"a":2}')


class Agent:
    """Draws one history; every text that must reach the model holds a mark of its own, in `marks`."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.marks: list[str] = []

    def body(self) -> dict[str, Any]:
        messages = [message for _ in range(self.draw.randint(1, 4)) for message in self.turn()]
        if self.draw.random() < 0.5:
            messages.insert(0, {"role": self.draw.choice(("system", "developer")), "content": self.content()})
        for mangle in self.draw.sample((self.compact, self.interrupt, self.decorate, self.replay, self.translate), 2):
            messages = mangle(messages)
        messages.append({"role": "user", "content": self.content()})
        return {"model": "m", "messages": messages, "tools": [WEATHER]}

    def text(self) -> str:
        mark = f"mark{len(self.marks)}z"
        self.marks.append(mark)
        return self.draw.choice(
            ("{} 😀", "cut \ud83d {}", "{} <|im_end|>", "\n{}\n", "{} \ude00", "<think> {}")
        ).format(mark)

    def content(self) -> Any:
        text = self.text()
        part = {"type": "text", "text": text}
        return self.draw.choice((text, text, [part], [text], part, [{"type": "input_text", "text": text}], [part, ""]))

    def turn(self) -> Iterator[dict[str, Any]]:
        yield {"role": "user", "content": self.content()}
        for _ in range(self.draw.choice((0, 1, 1, 2))):
            ids = [
                f"{self.draw.choice(('call_', 'toolu_', 'functions.x:'))}{self.draw.randint(0, 99)}" for _ in range(2)
            ]
            calls = [self.call(call_id) for call_id in ids[: self.draw.randint(1, 2)]]
            yield {"role": "assistant", "content": self.draw.choice((None, "", [], self.text())), "tool_calls": calls}
            for call in self.draw.sample(calls, len(calls)):
                yield {"role": "tool", "tool_call_id": call["id"], "content": self.content()}
        if self.draw.random() < 0.7:
            thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
            yield {
                "role": "assistant",
                "content": [thought, {"type": "text", "text": self.text().removeprefix("<think>")}],
            }

    def call(self, call_id: str) -> dict[str, Any]:
        mark = f"mark{len(self.marks)}z"
        self.marks.append(mark)
        arguments: Any = self.draw.choice((json.dumps({"a": mark}), {"a": mark}, f"{mark} {self.draw.choice(BROKEN)}"))
        return {
            "id": call_id,
            "type": "function",
            "function": {"name": self.draw.choice(NAMES), "arguments": arguments},
        }

    def compact(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The oldest messages are gone, wherever that cuts."""
        return messages[self.draw.randint(0, max(0, len(messages) - 1)) :]

    def interrupt(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One message never came."""
        at = self.draw.randrange(max(1, len(messages)))
        return [message for place, message in enumerate(messages) if place != at]

    def decorate(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Other clients' fields."""
        return [{**self.draw.choice(EXTRAS), **message} for message in messages]

    def translate(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Calls and results as other clients write them: without ids, without `function`, or as blocks."""
        form = self.draw.choice((without_id, flat, as_blocks))
        return [form(message) for message in messages]

    def replay(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Another server's replies: no content key, thoughts under other names, types left out."""
        for message in messages:
            if message["role"] == "assistant":
                message[self.draw.choice(("reasoning", "reasoning_content", "thinking"))] = "Hm \ud83d"
                for call in message.get("tool_calls") or ():
                    call.pop("type", None)
            if message.get("content") is None:
                message.pop("content", None)
        return messages


def without_id(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{key: value for key, value in call.items() if key != "id"} for call in message.get("tool_calls") or ()]
    return {**message, **({"tool_calls": calls} if calls else {}), "tool_call_id": None}


def flat(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls") or ()]
    return {**message, "tool_calls": calls} if calls else message


def as_blocks(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message.get("content")}
        return {"role": "user", "content": [block]}
    calls = [
        {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": call["function"]["arguments"]}
        for call in message.get("tool_calls") or ()
    ]
    if not calls:
        return message
    words = [{"type": "text", "text": message["content"]}] if message.get("content") else []
    return {**message, "content": [*words, *calls], "tool_calls": None}


@pytest.fixture(scope="module", params=SOME_FAMILIES)
def prompt_of(request: pytest.FixtureRequest) -> Callable[[Any], str]:
    checkpoint = Checkpoint.open(family_checkpoint(request.param))
    builder = PromptBuilder(checkpoint, Settings())

    def prompt(chat_request: Any) -> str:
        (generate,) = builder.prepare(chat_request).generates
        return str(checkpoint.tokenizer.decode(generate.token_ids, skip_special_tokens=False))

    return prompt


def test_no_history_crashes_and_no_text_is_lost(prompt_of: Callable[[Any], str], is_long: bool) -> None:
    """Agents go on with what they have kept; a 500, or a text that the model never sees, ends the session."""
    num_served, num_cases = 0, NUM_LONG_CASES if is_long else NUM_CASES
    for seed in range(num_cases):
        agent, repairs = Agent(seed), seed % 2 == 0
        raw = json.dumps(agent.body()).encode()
        mapper = RequestMapper(SamplingMapper(SamplingDefaults(), 1000), repair_history=repairs)
        try:
            body, _ = read_lenient(raw)
            prompt = prompt_of(mapper.to_request(*read_request(body, strict=False)))
        except RequestRefused as refused:
            assert refused.error.status == 400 and (refused.error.param or "").startswith("messages"), (seed, refused)
            assert not repairs, (seed, str(refused))
            continue
        except Rejected as refused:
            raise AssertionError(f"seed {seed}: {refused}") from refused
        num_served += 1
        lost = [mark for mark in agent.marks if mark.encode() in raw and mark not in prompt]
        assert lost == [], (seed, lost, raw)
    assert num_served > num_cases / 2
