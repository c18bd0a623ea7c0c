"""Small requests that once cost much: memory, time on the event loop, or time of the engine."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.malformed import CHAT, Malformed
from tests.hostile.scenario import Outcome, Scale, Scenario, chat_body, post, send_all, with_tool
from tests.live import Live

MIB = 1 << 20


def long_shortest_values(scale: Scale) -> Iterator[Malformed]:
    """Schemas whose shortest value is megabytes long."""
    text: dict[str, Any] = {"type": "string", "minLength": 100_000}
    many = {"type": "array", "minItems": 1000, "items": text}
    nested = {"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000, "items": {"const": 1}}}
    for value in (many, nested, {"const": "x" * 300_000}, {"type": "string", "minLength": 10**9}):
        schema = {"type": "object", "properties": {"a": value}, "required": ["a"]}
        yield post("a long shortest value", with_tool(schema))
        yield post("a long shortest value", chat_body(response_format=json_schema(schema)))


def long_prompts(scale: Scale) -> Iterator[Malformed]:
    """Texts far beyond the context window, of white space and of words."""
    for size in (400_000, 2 * MIB, 15 * MIB):
        for text in (" " * size, "word " * (size // 5), "\N{HANGUL SYLLABLE HAN}" * (size // 6)):
            yield post("a long prompt", chat_body(messages=[{"role": "user", "content": text}]))
            yield post("a long text", {"prompt": text}, "/tokenize")


def costly_patterns(scale: Scale) -> Iterator[Malformed]:
    """Regular expressions that are many, large, or that backtrack without an end."""
    large = {f"p{number}": {"type": "string", "pattern": f"[\\w\\s]{{900}}{number}"} for number in range(8500)}
    yield post("many large patterns", with_tool({"type": "object", "properties": large}))
    constants = [{"const": "a" * 28 + str(number)} for number in range(12)]
    branches = [{"if": {"pattern": f"^(a+)+{number}$"}, "then": {"type": "string"}} for number in range(100)]
    schema = {"type": "object", "properties": {"a": {"anyOf": constants, "allOf": branches}}, "required": ["a"]}
    yield post("patterns that backtrack", with_tool(schema))
    for pattern in (
        "(a|a)*$",
        "((a{0,99}){0,99}){0,99}",
        "(?=a)b",
        "[" * 5000,
        "(" * 5000 + ")" * 5000,
        "\\p{L}{9999}",
    ):
        value = {"type": "string", "pattern": pattern}
        yield post("a pattern", with_tool({"type": "object", "properties": {"a": value}, "required": ["a"]}))


def tiny_parts(scale: Scale) -> Iterator[Malformed]:
    """Megabytes of the smallest JSON values."""
    for item in ('{"type":"text","text":""}', "{}", "[]", "1", '""'):
        items = ",".join([item] * (12 * MIB // (len(item) + 1)))
        yield post("tiny parts", f'{{"messages": [{{"role": "user", "content": [{items}]}}]}}'.encode())
    for name in ("messages", "tools", "stop", "unknown"):
        items = ",".join(["{}"] * (3 * MIB))
        yield post("tiny parts", f'{{"messages": [], "{name}": [{items}]}}'.encode())
    keys = ",".join(f'"{number}":1' for number in range(MIB))
    yield post("tiny parts", f'{{"messages": [], "logit_bias": {{{keys}}}}}'.encode())


AMBIGUOUS = (
    "start: a+\na: /x*y?/ | /[xy]*/",
    "start: s\ns: s s | /[a-z ]/ | /[a-z]+/",
    "start: (/a*/ | /a+/ | /(a|b)*/)+",
)


def costly_generations(scale: Scale) -> Iterator[Malformed]:
    """Replies with ambiguous grammars, many choices or many log probabilities."""
    for definition in AMBIGUOUS:
        grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": definition}}
        custom = {"type": "custom", "custom": {"name": "write", "format": grammar}}
        yield post("an ambiguous grammar", chat_body(tools=[custom], tool_choice="required", n=128, max_tokens=48))
    yield post("many log probabilities", chat_body(n=128, logprobs=True, top_logprobs=20, max_tokens=48))
    yield post("many choices", chat_body(n=128, max_tokens=48, temperature=1.0))


def large_unions(scale: Scale) -> Iterator[Malformed]:
    """Strict schemas with more alternatives, or more optional members, than a grammar holds."""
    union = [
        {
            "type": "object",
            "properties": {f"k{number}": {"const": number}},
            "required": [f"k{number}"],
            "additionalProperties": False,
        }
        for number in range(1000)
    ]
    optional = {f"m{number}": {"type": "integer"} for number in range(2000)}
    for schema in (
        {"type": "object", "properties": {"a": {"anyOf": union}}, "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": optional},
        {"allOf": [{"anyOf": [{"required": [f"{a}{b}"]} for b in range(9)]} for a in range(8)]},
        {"anyOf": [{"const": number} for number in range(2000)]},
        {"type": "object", "properties": {"a": {"type": "array", "maxItems": 10**18}}},
        {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 999999937}}, "required": ["a"]},
    ):
        yield post("a large union", with_tool(schema))
        yield post("a large union", chat_body(response_format=json_schema(schema)))
        yield post("a large union", chat_body(response_format=json_schema(schema, strict=False)))


def json_schema(schema: Any, strict: bool = True) -> dict[str, Any]:
    """Return the response format of this schema."""
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": strict, "schema": schema}}


def odd_fields(scale: Scale) -> Iterator[Malformed]:
    """Fields of other variants beside those of the right one, as dumps of unions have them."""
    function = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    user = {"role": "user", "content": "Hi."}
    yield post("an odd field", chat_body(tools=[{"type": "function", "function": function, "custom": None}]))
    yield post("an odd field", chat_body(tools=[{"type": "function", "function": function, "custom": {}}]))
    for extra in ({"custom": None}, {"custom": {"name": "x", "input": "y"}}, {"function": None}, {"type": "custom"}):
        history = [user, {"role": "assistant", "tool_calls": [call | extra]}]
        yield post("an odd field", chat_body(messages=[*history, {"role": "tool", "tool_call_id": "c", "content": ""}]))
    for part in (
        {"type": "text", "text": "x", "refusal": {}},
        {"type": "text", "text": "x", "refusal": None},
        {"type": "refusal", "refusal": "x", "text": 5},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    ):
        for role in ("user", "assistant"):
            yield post("an odd field", chat_body(messages=[user, {"role": role, "content": [part]}, user]))
    for number in (2.0, 2.5, -1, 10**30, True, None, "2"):
        value = {"type": "array", "items": {"type": "integer"}, "minItems": number}
        yield post("an odd field", with_tool({"type": "object", "properties": {"a": value}, "required": ["a"]}))


def unread_bodies(scale: Scale) -> Iterator[Malformed]:
    """Lists of tokens far beyond the window; what a server makes of them may be larger than what was sent."""
    for _ in range(8):
        yield post("a long list of tokens", b'{"tokens": [' + b"1," * (3 * MIB // 2) + b"1]}", "/detokenize")


def bomb(name: str, requests: Any, at_once: int, is_short: bool) -> Scenario:
    """Return a scenario that sends these requests and reads the replies."""

    async def run(server: Live, scale: Scale, seed: int) -> Outcome:
        return await send_all(server, requests(scale), Outcome(), at_once)

    return Scenario(name, run, is_short)


async def empty_success(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send strict schemas beyond a grammar's limits: a 200 without content is a broken promise."""
    outcome = Outcome()
    client = server.client()
    for request in large_unions(scale):
        body = json.loads(request.raw.partition(b"\r\n\r\n")[2])
        if not body.get("response_format", {}).get("json_schema", {}).get("strict"):
            continue
        outcome.requests += 1
        reply = client._client.post(CHAT.removeprefix("/v1"), json=body | {"max_tokens": 400})
        if reply.status_code == 200:
            choice = reply.json()["choices"][0]
            if choice["finish_reason"] == "stop" and not choice["message"]["content"]:
                outcome.faults.append("an empty reply that counts as complete")
        elif "%json" in reply.text or "start:" in reply.text:
            outcome.faults.append(f"an error that quotes a grammar: {reply.text[:200]}")
    return outcome


BOMBS = (
    bomb("schemas with long shortest values", long_shortest_values, 2, is_short=False),
    bomb("prompts of 15 MiB", long_prompts, 1, is_short=False),
    bomb("costly patterns", costly_patterns, 2, is_short=False),
    bomb("12 MiB of tiny parts", tiny_parts, 1, is_short=False),
    bomb("token lists of 3 MiB", unread_bodies, 2, is_short=False),
    bomb("ambiguous grammars, 128 choices", costly_generations, 1, is_short=False),
    bomb("unions of 1000", large_unions, 2, is_short=False),
    Scenario("strict schemas beyond the limits", empty_success, is_short=False),
    bomb("fields of other variants", odd_fields, 4, is_short=False),
)
