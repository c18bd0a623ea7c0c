"""Random replies in every tool format, whole and damaged, read in random pieces.

A long run: `python -m tests.dialects.fuzz --cases 1000000 [--dialect hermes] [--seed 1]`
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from server.dialects.base import Dialect, Tool
from server.dialects.registry import DIALECTS
from tests.dialects.parse_helpers import Call, cut_somehow, read, texts_and_calls

TOOLS = (
    Tool(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "detail": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "place": {"type": "object"},
                "unit": {"enum": ["c", "f", None]},
                "note": {"type": ["string", "null"]},
            },
        },
    ),
    Tool("now"),
    Tool("send-mail_2", {"type": "object", "properties": {"body": {"type": "string"}, "to": {}}}),
    Tool("run", custom=True),
)
WORDS = (
    "Paris", "the", " ", "\n", "\n\n", "\t", "天気", "🌧️", "é", '"', "'", "\\", "\\n", "\\u00e9", "{", "}", "[", "]",
    ":", ",", "<", ">", "/", "0", "-1.5", "null", "true", "a < b", "</", "<t", "<tool", "```", "```json\n", "Action",
    "Thought:", '"a": 1', "{}", "=", "|",
)  # fmt: skip
MARKUP = {
    "hermes": (
        "<tool_call>", "</tool_call>", "<tools>", "</tools>", '{"name": "now"', '"arguments": {', '"}', "<input>\n",
        "[tool_call]", "[/tool_call]", "<Tool_Call>",
    ),
    "qwen3_coder": (
        "<tool_call>", "</tool_call>", "<function=now>", "</function>", "<parameter=city>", "</parameter>",
        "\n</parameter>\n", "<parameter>", "</parameters>", "[tool_call]", "[/tool_call]", "&lt;tool_call&gt;",
    ),
    "glm4": (
        "<tool_call>now\n", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "[tool_call]",
        "\nnow\n<arg_key>", "[/tool_call]",
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
        "<|tool_call_argument_begin|>", "functions.now:0",
    ),
    "react": (
        "\nAction: now\n", "\nAction Input:", "Action:", " Action:", "\nObservation:", "\nThought: ",
        "Final Answer:", "\n```",
    ),
}  # fmt: skip
NONCE = re.compile(r"[QZ][0-9]{4}")


def random_text(chance: random.Random, most: int, markup: Sequence[str] = ()) -> str:
    """Return some words, some with a nonce by which a loss is detected."""
    words = chance.choices([*WORDS, *markup], k=chance.randint(0, most))
    return "".join(word + (f"Q{chance.randint(0, 9999):04}" if chance.random() < 0.2 else "") for word in words)


def random_value(chance: random.Random, depth: int = 0) -> Any:
    """Return a random shallow JSON value."""
    kinds: list[Callable[[], Any]] = [
        lambda: random_text(chance, 5),
        lambda: chance.randint(-(10**6), 10**6),
        lambda: chance.choice((True, False, None, 0.5, -3e10)),
    ]
    if depth < 2:
        kinds.append(lambda: [random_value(chance, depth + 1) for _ in range(chance.randint(0, 3))])
        kinds.append(
            lambda: {random_text(chance, 2): random_value(chance, depth + 1) for _ in range(chance.randint(0, 3))}
        )
    return chance.choice(kinds)()


def random_call(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a tool's name and valid arguments that every format can write."""
    tool = chance.choice(TOOLS)
    if tool.custom:
        return tool.name, {"input": random_text(chance, 8)}
    makers: dict[str, Callable[[], Any]] = {
        "city": lambda: random_text(chance, 8),
        "days": lambda: chance.randint(-99, 99),
        "detail": lambda: chance.random() < 0.5,
        "tags": lambda: [random_text(chance, 3) for _ in range(chance.randint(0, 3))],
        "place": lambda: {random_text(chance, 1): random_value(chance) for _ in range(chance.randint(0, 2))},
        "unit": lambda: chance.choice(("c", "f", None)),
        "note": lambda: chance.choice((None, f"note {random_text(chance, 4)}")),
        "body": lambda: random_text(chance, 12),
        "to": lambda: chance.choice((None, 7, ["x"], "someone")),
    }
    names = list((tool.parameters or {}).get("properties", {}))
    return tool.name, {name: makers[name]() for name in chance.sample(names, chance.randint(0, len(names)))}


def write_call(dialect: str, name: str, arguments: dict[str, Any], number: int) -> str:
    """Return the call as a model trained on the format writes it."""
    text = json.dumps(arguments, ensure_ascii=False)
    raw = [(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in arguments.items()]
    match dialect:
        case "hermes":
            return f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'
        case "qwen3_coder":
            inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in raw)
            return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"
        case "glm4":
            inner = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in raw)
            return f"<tool_call>{name}\n{inner}</tool_call>"
        case "kimi_k2":
            call = f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{text}<|tool_call_end|>"
            return f"<|tool_calls_section_begin|>{call}<|tool_calls_section_end|>"
        case _:
            return f"\nAction: {name}\nAction Input: {text}"


def check_whole(dialect: Dialect, chance: random.Random) -> None:
    """Check that a valid reply is parsed as intended, in any pieces."""
    parts: list[str] = []
    meant: list[tuple[str, dict[str, Any]]] = []
    texts: list[str] = []
    for number in range(chance.randint(0, 3)):
        texts.append(plain_text(chance))
        meant.append(random_call(chance))
        parts += [texts[-1], write_call(dialect.name, *meant[-1], number)]
    reply = "".join(parts)
    found = texts_and_calls(read(dialect, TOOLS, cut_somehow(reply, chance)))
    calls = [one for one in found if isinstance(one, Call)]
    assert [call.name for call in calls] == [name for name, _ in meant], reply
    for call, (name, arguments) in zip(calls, meant, strict=True):
        assert call.flags == (), (call, reply)
        custom = name == "run"
        assert (call.arguments if custom else call.value) == (arguments["input"] if custom else arguments), reply
        if not custom and dialect.name in ("hermes", "kimi_k2", "react"):
            assert call.arguments in reply, "arguments are the model's own text"
    # One line break before a call is markup, and so is text of white space alone.
    assert [one for one in found if isinstance(one, str)] == [t.removesuffix("\n") for t in texts if t.strip()], reply


def plain_text(chance: random.Random) -> str:
    """Return text without markup of any format."""
    words = [
        word for word in WORDS if word not in ("<", "</", "<t", "<tool", "```", "```json\n", "Action", "Thought:", "\n")
    ]
    return " ".join(chance.choices(words, k=chance.randint(0, 5))) + chance.choice(("", "\n", " x"))


def check_damaged(dialect: Dialect, chance: random.Random) -> None:
    """Check a damaged reply: any pieces give the same events, in a valid sequence, and no text is lost."""
    reply = damaged_reply(dialect.name, chance)
    whole = read(dialect, TOOLS, [reply])
    pieces = cut_somehow(reply, chance)
    assert read(dialect, TOOLS, pieces) == whole, (reply, pieces)
    found = texts_and_calls(whole)
    kept = "".join(one if isinstance(one, str) else f"{one.name} {one.arguments} {one.raw} " for one in found)
    lost = set(NONCE.findall(reply)) - set(NONCE.findall(kept))
    assert not lost, (lost, reply)


def damaged_reply(dialect: str, chance: random.Random) -> str:
    """Return calls and text with some of it removed, doubled or inserted."""
    parts = []
    for number in range(chance.randint(1, 3)):
        parts.append(random_text(chance, 4, MARKUP[dialect] if chance.random() < 0.3 else ()))
        parts.append(write_call(dialect, *random_call(chance), number))
    reply = "".join([*parts, random_text(chance, 3)])
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        start = chance.randint(0, len(reply))
        end = min(len(reply), start + chance.choice((0, 1, 1, 2, 5, 20)))
        put = chance.choice(("", "", reply[start:end] * 2, random_text(chance, 2, MARKUP[dialect])))
        reply = reply[:start] + put + reply[end:]
    return reply[: chance.randint(0, len(reply))] if chance.random() < 0.2 else reply


def run(dialect: Dialect, cases: int, seed: int) -> None:
    """Check that many replies, half of them damaged; raise AssertionError with the reply that breaks a law."""
    for case in range(cases):
        chance = random.Random(f"{dialect.name} {seed} {case}")
        (check_whole if case % 2 else check_damaged)(dialect, chance)


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=100_000, help="replies for each dialect")
    options.add_argument("--dialect", choices=[dialect.name for dialect in DIALECTS])
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    for dialect in DIALECTS:
        if chosen.dialect in (None, dialect.name):
            begun = time.perf_counter()
            run(dialect, chosen.cases, chosen.seed)
            seconds = time.perf_counter() - begun
            sys.stdout.write(f"{dialect.name}: {chosen.cases} replies held the laws in {seconds:.1f} s\n")


if __name__ == "__main__":
    main()
