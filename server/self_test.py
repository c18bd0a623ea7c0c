"""Round trip of tool calls through this checkpoint's template, tokenizer and parser, before anything is served.

    calls -> template -> ids -> text -> parser -> the same calls?

The template writes calls into the history just as the model was trained to write them. If the parser does not read
them back, it is the wrong one, or it is broken, and no client would ever see a call. And every control token is
planted in every place of a conversation: whatever the template does, none may come through.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.checkpoint.checkpoint import THINK_CLOSE, THINK_OPEN, Checkpoint
from server.dialects.base import Tool
from server.errors import BadRequest
from server.events import CallArguments, CallClosed, CallOpened, Event, Text, Thought
from server.messages import Delta
from server.prompt.normalize import normalize_messages
from server.prompt.reasoning import find_thinking
from server.prompt.render import Prompt, Renderer
from server.reply.decoder import ReplyDecoder, ReplyFormat
from server.reply.text import Vocabulary

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"type": "object", "properties": {"name": {"type": "string"}, "at": {"type": "array"}}},
    },
}
NAMES = ("self_test", "other_test")
DEFINITIONS = tuple(
    {"type": "function", "function": {"name": name, "description": "Tests.", "parameters": dict(SCHEMA)}}
    for name in NAMES
)
QUESTION = {"role": "user", "content": "Begin."}
HARMLESS = "plain"
SHOWN = 160  # characters of a reply that a fault quotes


@dataclass(frozen=True, slots=True)
class SelfTestFault:
    """One case that did not come back as it went in."""

    case: str
    text: str

    def __str__(self) -> str:
        return f"{self.case}: {self.text}"


@dataclass(frozen=True, slots=True)
class Case:
    """What an assistant says: calls by name and arguments, and text and thought beside them."""

    name: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    text: str = ""
    thought: str = ""


@dataclass(slots=True)
class ParsedReply:
    """What the outbound pipeline made of a reply."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""
    thought: str = ""
    flags: list[str] = field(default_factory=list)


CASES = (
    Case("one call", ((NAMES[0], {"text": "Paris", "count": 3}),)),
    Case("no arguments", ((NAMES[0], {}),)),
    Case("an empty text", ((NAMES[0], {"text": ""}),)),
    Case("every type", ((NAMES[0], {"count": -7, "share": 0.25, "sure": False, "tags": ["a", "b"]}),)),
    Case("nested values", ((NAMES[0], {"place": {"name": "x", "at": [1, 2, {"deep": [None, True]}]}}),)),
    Case("text that looks like another type", ((NAMES[0], {"text": "12"}), (NAMES[0], {"text": "null"}))),
    Case("unicode", ((NAMES[0], {"text": "Zürich 東京 👩‍👩‍👧 é"}),)),
    Case("quotes and escapes", ((NAMES[0], {"text": 'say "hi" \\ back\\slash {"a": [1]} <b>'}),)),
    Case("lines", ((NAMES[0], {"text": "first\n\n  second\tafter a tab\nlast"}),)),
    Case("calls in parallel", ((NAMES[0], {"text": "a"}), (NAMES[1], {"count": 1}), (NAMES[0], {}))),
    Case("text before a call", ((NAMES[0], {"text": "a"}),), text="Let me look."),
    Case("a thought before a call", ((NAMES[0], {"text": "a"}),), thought="A tool would help."),
    Case("text alone", (), text="Just words, and {braces}."),
)


class _Bench:
    """Renders and encodes small conversations with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        tags = (THINK_OPEN, THINK_CLOSE) if checkpoint.think else ()
        self.vocabulary = Vocabulary(checkpoint.tokenizer, kept=frozenset((*checkpoint.dialect.markers, *tags)))
        self._renderer = Renderer(checkpoint.template, checkpoint.mask, checkpoint.encoder)
        self._control = frozenset(checkpoint.marker_ids.values())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = DEFINITIONS,
        ask_for_reply: bool = True,
    ) -> Prompt:
        """The prompt of a conversation with these tools."""
        script = self._renderer.script(normalize_messages(messages, self.checkpoint.capabilities), tools, {})
        return self._renderer.render(replace(script, ask_for_reply=ask_for_reply))

    def control_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """The control tokens of a conversation's prompt, in order."""
        return [token_id for token_id in self.render(messages, tools).token_ids if token_id in self._control]

    def ids_of_reply(self, text: str) -> list[int]:
        """The ids of a rendered reply up to the end of its turn."""
        pieces = self.checkpoint.encoder.pieces(text, self.checkpoint.mask)
        reply = [token_id for piece in pieces for token_id in piece.token_ids]
        end = next((i for i, token_id in enumerate(reply) if token_id in self.checkpoint.stop_ids), len(reply))
        return reply[:end]


def self_test(checkpoint: Checkpoint) -> list[SelfTestFault]:
    """The faults found; none if all is well. Takes some tens of milliseconds, and no weights."""
    bench = _Bench(checkpoint)
    try:
        faults = [*_tools_are_shown(bench), *_control_tokens_stay_out(bench)]
        for case in CASES:
            if not case.thought or THINK_OPEN in checkpoint.template.source:
                faults += _round_trip(bench, case)
    except BadRequest as error:
        return [SelfTestFault("template", str(error))]
    return faults


def _tools_are_shown(bench: _Bench) -> Iterator[SelfTestFault]:
    text = bench.render([QUESTION]).text
    missing = [name for name in NAMES if name not in text]
    if missing:
        yield SelfTestFault("tools", f"the chat template does not show the tools {', '.join(missing)} to the model")


def _round_trip(bench: _Bench, case: Case) -> Iterator[SelfTestFault]:
    checkpoint = bench.checkpoint
    prompt = bench.render([QUESTION])
    whole = bench.render([QUESTION, _assistant(case)], ask_for_reply=False)
    if not whole.text.startswith(prompt.text):
        yield SelfTestFault(case.name, "the chat template does not write an answer where it asks for one")
        return
    reply = bench.ids_of_reply(whole.text[len(prompt.text) :])
    reading = ReplyFormat(
        bench.vocabulary,
        stop_ids=frozenset(checkpoint.stop_ids),
        thinking=find_thinking(checkpoint, prompt, prefill=False),
        call_markers=checkpoint.dialect.markers[:1],
        halts=checkpoint.dialect.halts,
        parser=lambda: checkpoint.dialect.parser([Tool(name, SCHEMA) for name in NAMES]),
    )
    fault = _difference(case, _listen(reading, reply))
    if fault:
        text = checkpoint.tokenizer.decode(reply, skip_special_tokens=False)
        yield SelfTestFault(
            case.name, f"{fault}; the template writes {text[:SHOWN]!r}, read as {checkpoint.dialect.name}"
        )


def _listen(reading: ReplyFormat, reply: list[int]) -> ParsedReply:
    turn = ReplyDecoder(reading)
    heard = ParsedReply()
    for said in [*turn.feed(Delta("self-test", reply, finish="stop")), *turn.close("stop")]:
        _note(heard, said.event)
    return heard


def _note(heard: ParsedReply, event: Event) -> None:
    match event:
        case CallOpened(name=name):
            heard.calls.append((name, ""))
        case CallArguments(text=text):
            name, so_far = heard.calls[-1]
            heard.calls[-1] = (name, so_far + text)
        case CallClosed(flags=flags):
            heard.flags += flags
        case Text(text=text):
            heard.text += text
        case Thought(text=text):
            heard.thought += text


def _difference(case: Case, heard: ParsedReply) -> str | None:
    names = [name for name, _ in heard.calls]
    if names != [name for name, _ in case.calls]:
        return f"{len(case.calls)} calls went in, {len(names)} came back"
    # Templates of XML formats write booleans as Python does, which the parser repairs.
    flags = sorted(set(heard.flags) - {"repaired"})
    if flags:
        return f"a call came back {' and '.join(flags)}"
    for (_, arguments), (_, text) in zip(case.calls, heard.calls, strict=True):
        if json.loads(text) != arguments:
            return f"arguments went in as {json.dumps(arguments, ensure_ascii=False)} and came back as {text}"
    if heard.text.strip() != case.text:
        return f"the text went in as {case.text!r} and came back as {heard.text!r}"
    if heard.thought.strip() != case.thought:
        return f"the thought went in as {case.thought!r} and came back as {heard.thought!r}"
    return None


def _control_tokens_stay_out(bench: _Bench) -> Iterator[SelfTestFault]:
    harmless = bench.control_ids(*_planted(HARMLESS))
    tokens = [token.text for token in bench.checkpoint.control_tokens if not token.text.isspace()]
    payloads = [*tokens, *(text[1:-1] for text in tokens if text[1:-1].strip())]
    leaks = [text for text in payloads if bench.control_ids(*_planted(text)) != harmless]
    if leaks:
        yield SelfTestFault(
            "control tokens", f"{len(leaks)} texts of a client become control tokens, {leaks[0]!r} is one"
        )


def _planted(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A conversation that says `text` wherever a client may, and its tools."""
    function = {"name": NAMES[0], "arguments": {text: text, "tags": [text]}}
    call = {"id": text, "type": "function", "function": function}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "reasoning_content": text, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": text, "name": NAMES[0], "content": text},
        {"role": "user", "content": text},
    ]
    field = {"type": "string", "description": text, "enum": [text], f"{text}": text}
    schema = {"type": "object", "properties": {"text": field}, text: text}
    return messages, [{"type": "function", "function": {"name": text, "description": text, "parameters": schema}}]


def _assistant(case: Case) -> dict[str, Any]:
    calls = [
        {"id": f"functions.{name}:{i}", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for i, (name, arguments) in enumerate(case.calls)
    ]
    message = {"role": "assistant", "content": case.text, "tool_calls": calls}
    return {**message, "reasoning_content": case.thought} if case.thought else message
