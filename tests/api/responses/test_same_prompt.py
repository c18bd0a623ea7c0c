"""One conversation has one prompt: as kept responses, as items sent back, and as chat messages, in every dialect."""

import json
import random
from typing import Any

import pytest

from server.api.chat.schemas import read_request
from server.api.chat.to_request import RequestMapper
from server.api.responses.items import read_items
from server.api.responses.memory import to_kept_items
from server.api.responses.reasoning_seal import random_seal
from server.api.responses.schemas import read_responses_request
from server.api.responses.to_request import ResponsesMapper
from server.api.sampling import SamplingMapper
from server.chat_request import ChatRequest
from server.checkpoint.checkpoint import Checkpoint
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from tests.families import SOME_FAMILIES, family_checkpoint

SEAL = random_seal()
FUNCTION = {
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CHAT_TOOLS = [
    {"type": "function", "function": FUNCTION},
    {"type": "custom", "custom": {"name": "note", "description": "Write down"}},
]
TOOLS = [{"type": "function", **FUNCTION}, {"type": "custom", "name": "note", "description": "Write down"}]
WORDS = ("Paris", "it rains", "line\nbreak", "  spaces ", "21 °C", "<b>", '"quoted"', "")


def turn(chance: random.Random, number: int) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """One turn of the user with its replies: as chat messages, and as pairs of lists: items sent, items of a reply."""
    asks = chance.choice(WORDS) or "Hi"
    messages: list[dict[str, Any]] = [{"role": "user", "content": asks}]
    parts = [{"type": "input_text", "text": asks}]
    steps: list[list[dict[str, Any]]] = [[{"role": "user", "content": chance.choice([asks, parts])}]]
    for step in range(chance.randint(0, 2)):
        calls, items, results, answers = [], [], [], []
        for place in range(chance.randint(1, 3)):
            call_id, output = f"call_{number}_{step}_{place}", chance.choice(WORDS)
            if chance.random() < 0.5:
                arguments = json.dumps({"city": chance.choice(WORDS)})
                calls.append(
                    {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
                )
                kind, shown = "function_call", {"name": "get_weather", "arguments": arguments}
            else:
                text = chance.choice(WORDS)
                calls.append({"id": call_id, "type": "custom", "custom": {"name": "note", "input": text}})
                kind, shown = "custom_tool_call", {"name": "note", "input": text}
            items.append({"type": kind, "id": f"item_{call_id}", "call_id": call_id, **shown})
            results.append({"role": "tool", "tool_call_id": call_id, "content": output})
            answers.append({"type": f"{kind}_output", "call_id": call_id, "output": output})
        before, reply = said(chance, f"{number}_{step}", may_be_silent=True)
        messages += [{**before, "tool_calls": calls}, *results]
        chance.shuffle(answers)
        steps += [[*reply, *items], answers]
    message, reply = said(chance, f"{number}_end", may_be_silent=False)
    return [*messages, message], [*steps, reply]


def said(chance: random.Random, name: str, may_be_silent: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A thought and a text, each perhaps: as a chat message, and as items."""
    thought = chance.choice(["", "hm, so\nit is", "yes"])
    text = "" if may_be_silent and chance.random() < 0.5 else chance.choice(WORDS[:-1])
    message: dict[str, Any] = {"role": "assistant", "content": text}
    items: list[dict[str, Any]] = []
    if thought:
        message["reasoning_content"] = thought
        item: dict[str, Any] = {"type": "reasoning", "id": f"rs_{name}", "summary": []}
        if chance.random() < 0.5:
            items.append({**item, "encrypted_content": SEAL.seal(thought)})
        else:
            items.append({**item, "content": [{"type": "reasoning_text", "text": thought}]})
    if text:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        items.append({"type": "message", "id": f"msg_{name}", "role": "assistant", "content": content})
    return message, items


class Prompts:
    """Prompts of both surfaces for one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._chat = RequestMapper(SamplingMapper(checkpoint.defaults, checkpoint.tokenizer.get_vocab_size()))
        self._responses = ResponsesMapper(self._chat, SEAL)
        self._builder = PromptBuilder(checkpoint, Settings())

    def of_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        sent = read_request({"model": "m", "messages": messages, "tools": CHAT_TOOLS}, False)
        return self._ids(self._chat.to_request(*sent))

    def of_items(self, kept: list[dict[str, Any]], items: Any) -> list[int]:
        body = {"model": "m", "input": items, "instructions": "Be brief.", "tools": TOOLS}
        sent, _ = read_responses_request(body, False)
        return self._ids(self._responses.map(sent, read_items(kept), read_items(sent.input)).request)

    def _ids(self, request: ChatRequest) -> list[int]:
        return list(self._builder.prepare(request).generates[0].token_ids)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_it_is_the_same_in_all_three_ways(family: str) -> None:
    prompts = Prompts(Checkpoint.open(family_checkpoint(family)))
    for seed in range(12):
        chance = random.Random(seed)
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        steps: list[list[dict[str, Any]]] = []
        for number in range(chance.randint(1, 3)):
            more, new = turn(chance, number)
            messages += more
            steps += new
        messages, steps = [*messages, {"role": "user", "content": "And now?"}], [*steps, "And now?"]  # type: ignore[list-item]
        by_chat = prompts.of_chat(messages)
        *earlier, last = steps
        all_items = [item for step in earlier for item in step]
        sent_back = [*all_items, {"role": "user", "content": last}]
        kept = json.loads(json.dumps([item for step in earlier for item in to_kept_items(step)]))
        assert prompts.of_items([], sent_back) == by_chat, (family, seed)
        assert prompts.of_items(kept, last) == by_chat, (family, seed)
