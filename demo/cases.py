"""Held-out evaluation: requests whose tools, parameters, nouns and values never occur in training."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from demo.dialogues import Author, Dialogue, Stage, Turn, read_smalltalk
from demo.everyday import known_words, read_everyday
from demo.requests import Call
from demo.results import plain
from demo.words import World

Kind = Literal[
    "one of four", "one of eight", "two parallel", "none fits", "missing", "result", "small talk", "everyday"
]
COUNTS: tuple[tuple[Kind, int], ...] = (
    ("one of four", 200), ("one of eight", 60), ("two parallel", 120), ("none fits", 80), ("missing", 60),
    ("result", 80), ("small talk", 30), ("everyday", 80),
)  # fmt: skip
TOOL_COUNTS: dict[Kind, int] = {
    "one of eight": 8,
    "none fits": 4,
    "one of four": 4,
    "two parallel": 4,
    "small talk": 4,
    "everyday": 4,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation as an OpenAI client sends it, with the expected reply.

    calls: the expected calls, none if text is expected; mentions: words that the text must contain.
    """

    kind: Kind
    thinking: bool
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    calls: tuple[Call, ...]
    mentions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A model's reply to a case."""

    calls: tuple[Call, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """right_tools: the names of the calls are as expected; exact: so are the arguments, or the mentions."""

    right_tools: bool
    exact: bool


def judge(case: Case, outcome: Outcome) -> Verdict:
    """Compare a reply with what the case expects."""
    right_tools = [call.name for call in outcome.calls] == [call.name for call in case.calls]
    same = [canonical(call) for call in outcome.calls] == [canonical(call) for call in case.calls]
    mentioned = all(word in outcome.text for word in case.mentions)
    return Verdict(right_tools, right_tools and same and mentioned)


def canonical(call: Call) -> str:
    """Return equal strings for equal calls: key order and 12 or 12.0 do not matter, true and 1 differ."""
    return json.dumps([call.name, whole_numbers(call.arguments)], sort_keys=True, ensure_ascii=False)


def whole_numbers(value: Any) -> Any:
    """Replace floats with integral values by integers, recursively."""
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def write_cases(seed: int, scale: float = 1.0) -> list[Case]:
    """Return the cases of a seed, 710 at full scale; half of each kind has thinking enabled.

    Everything is held out, except that "everyday" uses the hand-written tools, known from training, with new values.
    """
    world = World("heldout", random.Random(f"evaluation-{seed}"), known_words())
    unseen = Author(world, (), read_smalltalk(), Stage(everyday_share=0.0))
    familiar = Author(world, read_everyday(), read_smalltalk(), Stage(everyday_share=1.0))
    cases = []
    for kind, count in COUNTS:
        source = write_kind(familiar if kind == "everyday" else unseen, kind)
        cases += [next(source) for _ in range(max(2, round(count * scale)))]
    return cases


def write_kind(author: Author, kind: Kind) -> Iterator[Case]:
    """Yield endless cases of one kind, with thinking off and on alternately."""
    thinking = False
    while True:
        case = write_case(author, kind, thinking)
        if case is not None:
            yield case
            thinking = not thinking


def write_case(author: Author, kind: Kind, thinking: bool) -> Case | None:
    """Return one case, or None if the random tools do not suit this kind."""
    rng = author.world.rng
    tools = author.draw_tools(TOOL_COUNTS.get(kind, rng.choice((1, 2, 3, 4))))
    scenario = {
        "one of four": "one", "one of eight": "one", "none fits": "none_fits", "missing": "missing", "result": "one",
        "small talk": "chat", "everyday": "one", "two parallel": rng.choice(("same_twice", "two_tools")),
    }[kind]  # fmt: skip
    turns = author.exchange(scenario, tools)
    first = turns[1]
    if kind == "two parallel" and len(first.calls) != 2:
        return None
    if kind == "missing" and (first.calls or len(turns) > 2):
        return None
    upto = 1
    if kind == "result":
        if len(turns) < 4:
            return None
        upto = len(turns) - 1
    dialogue = Dialogue(scenario, tools, turns, thinking=thinking)
    expected = turns[upto]
    mentions = find_mentions(kind, turns, expected)
    messages = to_messages(dialogue, upto)
    return Case(kind, thinking, messages, tuple(t.schema() for t in tools), expected.calls, mentions)


def find_mentions(kind: Kind, turns: tuple[Turn, ...], expected: Turn) -> tuple[str, ...]:
    """Return what the text must contain: every value of the results, or the names of missing parameters."""
    if kind == "result":
        return tuple(word for turn in turns if turn.role == "tool" for word in result_words(turn.content))
    if kind == "missing":
        names = expected.content.removeprefix("Please tell me ").rstrip(".")
        return tuple(part.removeprefix("the ") for part in names.replace(" and the ", ", the ").split(", "))
    return ()


def result_words(content: str) -> list[str]:
    """Return the values of a tool result as the answer spells them."""
    try:
        result = json.loads(content)
    except json.JSONDecodeError:
        return [content]
    values = list(result.values()) if isinstance(result, dict) else result if isinstance(result, list) else [result]
    return [plain(item) for value in values for item in (value if isinstance(value, list) else [value])]


def to_messages(dialogue: Dialogue, upto: int) -> tuple[dict[str, Any], ...]:
    """Return the turns before `upto` as OpenAI messages."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    pending: list[str] = []
    for index, turn in enumerate(dialogue.turns[:upto]):
        if turn.role == "tool":
            messages.append({"role": "tool", "tool_call_id": pending.pop(0), "content": turn.content})
            continue
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls:
            pending = [f"call_{index}_{number}" for number in range(len(turn.calls))]
            message = {"role": "assistant", "content": None, "tool_calls": [
                {"id": identity, "type": "function", "function": {
                    "name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
                for identity, call in zip(pending, turn.calls, strict=True)
            ]}  # fmt: skip
        messages.append(message)
    return tuple(messages)
