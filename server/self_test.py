"""Self-test at start: tool calls survive a round trip, and text from clients never becomes a control token.

    calls -> template -> ids -> text -> parser -> the same calls?

The template writes calls into the history as the model was trained to write them. If the parser does not read them
back, it is the wrong one or broken, and no client would ever receive a call. For the second part every control token,
and every text that the template's own operations could turn into one, is put into every field that a client can set.
"""

import json
import re
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.template import THINK_CLOSE, THINK_OPEN, RenderedText
from server.dialects.base import Tool
from server.errors import BadRequest
from server.events import CallArguments, CallClosed, CallOpened, Event, Text, Thought
from server.messages import Delta
from server.prompt.normalize import normalize_messages
from server.prompt.reasoning import find_thinking
from server.prompt.render import Prompt, Renderer, TemplateInput
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
QUESTION = UserMessage("Begin.")
HARMLESS = "plain"
STRING = r"""('[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")"""
REPLACEMENT = re.compile(rf"\breplace\(\s*{STRING}\s*,\s*{STRING}")
SPLIT = re.compile(rf"\b(?:r?split|r?partition)\(\s*{STRING}")
STRIP = re.compile(rf"\b(?:[lr]?strip|trim|remove(?:prefix|suffix))\(\s*{STRING}")
JOIN = re.compile(rf"{STRING}\.join\(|\bjoin\(\s*{STRING}")
OPEN_THINK = re.compile(rf"{THINK_OPEN}\s*$")
MAX_QUOTED = 160  # of a reply, in a fault


@dataclass(frozen=True, slots=True)
class SelfTestFault:
    """A case whose reply was not parsed as it was written."""

    case: str
    text: str

    def __str__(self) -> str:
        return f"{self.case}: {self.text}"


@dataclass(frozen=True, slots=True)
class Case:
    """An assistant's message: calls by name and arguments, with text and reasoning."""

    name: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    text: str = ""
    thought: str = ""


@dataclass(slots=True)
class ParsedReply:
    """What the decoder read from a reply."""

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


class _Operations:
    """Literal arguments of the operations on text that a template's source spells out."""

    def __init__(self, source: str) -> None:
        replaced = {(literal_eval(found[1]), literal_eval(found[2])) for found in REPLACEMENT.finditer(source)}
        self.replacements = sorted((old, new) for old, new in replaced if old)
        self.separators = _literals(SPLIT, source)
        self.stripped = _literals(STRIP, source)
        self.joins = ["", *_literals(JOIN, source)] if "join" in source else []

    def disguises(self, token: str) -> Iterator[Sequence[str]]:
        """The token and texts that a template could turn into it, each as one text or as the texts of an array.

        By letters around it, by case, reversed, by the template's replacements, separators, trimmed letters and joins.
        """
        for text in filter(str.strip, (token, token[1:-1])):
            yield from ((disguise,) for disguise in (text, text.upper(), text.swapcase(), text[::-1]))
            for old, new in self.replacements:
                yield (text.replace(new, old) if new else f"{text[0]}{old}{text[1:]}",)
            yield from ((f"{text[0]}{separator}{text[1:]}",) for separator in self.separators)
            yield from ((f"{letters}{text}{letters}",) for letters in self.stripped)
        for glue in self.joins:
            yield token.split(glue) if glue and glue in token else (token[:1], token[1:])


def _literals(operation: re.Pattern[str], source: str) -> list[str]:
    """Distinct texts that are the argument of this operation."""
    found = (literal_eval(match[match.lastindex or 1]) for match in operation.finditer(source))
    return sorted({text for text in found if text})


class _Pipeline:
    """Renders and encodes small conversations with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        tags = (THINK_OPEN, THINK_CLOSE) if checkpoint.think else ()
        self.vocabulary = Vocabulary(checkpoint.tokenizer, kept=frozenset((*checkpoint.dialect.markers, *tags)))
        self._renderer = Renderer(checkpoint.template, checkpoint.encoder)
        self._control = frozenset(checkpoint.marker_ids.values())
        self.operations = _Operations(checkpoint.template.source)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = DEFINITIONS,
    ) -> Prompt:
        """The prompt of a conversation with these tools."""
        return self._renderer.render(self._template_input(messages, tools))

    def encode_as_written(self, text: str) -> Prompt:
        """A prompt of this text, all of it the template's."""
        rendered = RenderedText(text, ((0, len(text)),))
        return Prompt(text, tuple(self.checkpoint.encoder.pieces(rendered)))

    def control_ids(self, prompt: Prompt) -> list[int]:
        """The prompt's control tokens, in order."""
        return [token_id for token_id in prompt.token_ids if token_id in self._control]

    def render_history(self, messages: Sequence[Message]) -> RenderedText:
        """The text of a conversation that ends with a reply."""
        return self._renderer.render_text(replace(self._template_input(messages, DEFINITIONS), ask_for_reply=False))

    def ids_of_reply(self, text: RenderedText) -> list[int]:
        """The ids of a rendered reply up to its first stop id."""
        reply = self.checkpoint.encoder.encode(text)
        end = next((i for i, token_id in enumerate(reply) if token_id in self.checkpoint.stop_ids), len(reply))
        return reply[:end]

    def _template_input(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> TemplateInput:
        checkpoint = self.checkpoint
        normalized = normalize_messages(messages, checkpoint.capabilities, checkpoint.dialect.call_id)
        return self._renderer.template_input(normalized, tools, {})


def self_test(checkpoint: Checkpoint) -> list[SelfTestFault]:
    """The faults found, none if the checkpoint passes. Takes tens of milliseconds; needs no weights."""
    pipeline = _Pipeline(checkpoint)
    try:
        faults = [*_check_tools_are_rendered(pipeline), *_check_control_tokens(pipeline)]
        for case in CASES:
            if not case.thought or THINK_OPEN in checkpoint.template.source:
                faults += _check_round_trip(pipeline, case)
    except BadRequest as error:
        return [SelfTestFault("template", str(error))]
    return faults


def _check_tools_are_rendered(pipeline: _Pipeline) -> Iterator[SelfTestFault]:
    text = pipeline.render([QUESTION]).text
    missing = [name for name in NAMES if name not in text]
    if missing:
        yield SelfTestFault("tools", f"the chat template does not show the tools {', '.join(missing)} to the model")


def _check_round_trip(pipeline: _Pipeline, case: Case) -> Iterator[SelfTestFault]:
    checkpoint = pipeline.checkpoint
    prompt = pipeline.render([QUESTION])
    whole = pipeline.render_history([QUESTION, _assistant_message(case)])
    head, thinking = prompt.text, find_thinking(checkpoint, prompt, prefill=False)
    if not whole.text.startswith(head):  # some open a think block here that they leave out of earlier replies
        head = OPEN_THINK.sub("", head)
        thinking = "open" if whole.text.startswith(THINK_CLOSE, len(head)) else "off"
    if not whole.text.startswith(head):
        yield SelfTestFault(
            case.name, "the chat template renders a reply in another place than after its generation prompt"
        )
        return
    if case.thought not in whole.text:
        case = replace(case, thought="")
    reply = pipeline.ids_of_reply(whole.after(len(head)))
    reply_format = ReplyFormat(
        pipeline.vocabulary,
        stop_ids=frozenset(checkpoint.stop_ids),
        thinking=thinking,
        call_markers=checkpoint.dialect.markers[:1],
        halts=checkpoint.dialect.halts,
        parser=lambda: checkpoint.dialect.parser([Tool(name, SCHEMA) for name in NAMES]),
    )
    fault = _find_difference(case, _decode(reply_format, reply))
    if fault:
        text = checkpoint.tokenizer.decode(reply, skip_special_tokens=False)
        yield SelfTestFault(
            case.name,
            f"{fault}; the template writes {text[:MAX_QUOTED]!r}, read as {checkpoint.dialect.name}",
        )


def _decode(reply_format: ReplyFormat, reply: list[int]) -> ParsedReply:
    decoder = ReplyDecoder(reply_format)
    parsed = ParsedReply()
    for item in [*decoder.feed(Delta("self-test", reply, finish="stop")), *decoder.close("stop")]:
        _record(parsed, item.event)
    return parsed


def _record(parsed: ParsedReply, event: Event) -> None:
    match event:
        case CallOpened(name=name):
            parsed.calls.append((name, ""))
        case CallArguments(text=text):
            name, so_far = parsed.calls[-1]
            parsed.calls[-1] = (name, so_far + text)
        case CallClosed(flags=flags):
            parsed.flags += flags
        case Text(text=text):
            parsed.text += text
        case Thought(text=text):
            parsed.thought += text


def _find_difference(case: Case, parsed: ParsedReply) -> str | None:
    names = [name for name, _ in parsed.calls]
    if names != [name for name, _ in case.calls]:
        return f"{len(case.calls)} calls went in, {len(names)} came back"
    # Templates of XML formats write booleans as Python does, which the parser repairs.
    flags = sorted(set(parsed.flags) - {"repaired"})
    if flags:
        return f"a call came back {' and '.join(flags)}"
    for (_, arguments), (_, text) in zip(case.calls, parsed.calls, strict=True):
        if json.loads(text) != arguments:
            return f"arguments went in as {json.dumps(arguments, ensure_ascii=False)} and came back as {text}"
    if parsed.text.strip() != case.text:
        return f"the text went in as {case.text!r} and came back as {parsed.text!r}"
    if parsed.thought.strip() != case.thought:
        return f"the thought went in as {case.thought!r} and came back as {parsed.thought!r}"
    return None


def _check_control_tokens(pipeline: _Pipeline) -> Iterator[SelfTestFault]:
    harmless = pipeline.render(*_conversation_of((HARMLESS,)))
    expected = pipeline.control_ids(harmless)
    if expected != pipeline.control_ids(pipeline.encode_as_written(harmless.text)):
        yield SelfTestFault(
            "control tokens", "the chat template makes control tokens by operations on text, which is not supported"
        )
    tokens = [token.text for token in pipeline.checkpoint.control_tokens if not token.text.isspace()]
    payloads = dict.fromkeys(tuple(texts) for token in tokens for texts in pipeline.operations.disguises(token))
    leaks = [texts for texts in payloads if pipeline.control_ids(pipeline.render(*_conversation_of(texts))) != expected]
    if leaks:
        example = ", ".join(map(repr, leaks[0]))
        yield SelfTestFault("control tokens", f"{len(leaks)} texts of a client become control tokens, {example} is one")


def _conversation_of(texts: Sequence[str]) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages and tools that hold the texts, one after the other, in every field that a client can set."""
    text, items = "".join(texts), [*texts]
    messages: list[Message] = [
        SystemMessage(text),
        UserMessage(text),
        AssistantMessage(text, text, (PastCall(text, NAMES[0], {text: text, "tags": items}),)),
        ToolMessage(text, text, NAMES[0]),
        UserMessage(text),
    ]
    field = {"type": "string", "description": text, "enum": items, f"{text}": text}
    schema = {"type": "object", "properties": {"text": field}, text: text}
    return messages, [{"type": "function", "function": {"name": text, "description": text, "parameters": schema}}]


def _assistant_message(case: Case) -> AssistantMessage:
    calls = tuple(
        PastCall(f"functions.{name}:{i}", name, dict(arguments)) for i, (name, arguments) in enumerate(case.calls)
    )
    return AssistantMessage(case.text, case.thought or None, calls)
