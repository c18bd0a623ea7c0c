"""Messages of a Messages request -> typed messages: results behind their calls, notes on what is left out."""

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.api.body import bad
from server.api.chat.content import failed_text
from server.api.chat.message_schemas import TextPart
from server.api.history import Located, repaired, with_call_ids
from server.api.messages.schemas import (
    Block,
    DocumentBlock,
    InputMessage,
    SearchResultBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.notes import Note

BILLING_HEADER = "x-anthropic-billing-header"  # first word of a line for Anthropic's accounts, new in each request
SIGNATURE = "toolwire-1."  # what our signatures begin with


def signature_of(thought: str, omitted: bool) -> str:
    """Signature of a thinking block; where its text is omitted, the signature carries it."""
    return SIGNATURE + (base64.urlsafe_b64encode(thought.encode()).decode() if omitted else "")


@dataclass(slots=True)
class BlockReader:
    """Reads the `system` blocks and messages of one request; `notes` are what it left out or put right.

    With `repairs` calls and results that do not match are put right instead of refused.
    """

    repairs: bool = False
    notes: list[Note] = field(default_factory=list)

    def read(self, system: Sequence[Block], sent: Sequence[InputMessage]) -> tuple[Message, ...]:
        """The typed messages, results in the order of their calls. Raises RequestRefused."""
        located: list[Located] = [(0, SystemMessage(text)) for text in self._system_texts(system)]
        for index, message in enumerate(sent):
            for typed in self._typed(message, f"messages[{index}].content"):
                located.append((index, typed))
        located, notes = with_call_ids(_without_split_replies(located))
        self.notes += notes
        if self.repairs:
            places = [index for index, _ in located]
            whole, notes = repaired([message for _, message in located], lambda at: f"messages[{places[at]}]")
            located = [(places[at], message) for at, message in whole]
            self.notes += notes
        return tuple(_paired(located))

    def _system_texts(self, blocks: Sequence[Block]) -> Iterator[str]:
        for position, block in enumerate(blocks):
            text = self._text_of([block], f"system[{position}]")
            if text.startswith(BILLING_HEADER):
                _, _, text = text.partition("\n")
            if text:
                yield text

    def _typed(self, message: InputMessage, path: str) -> Iterator[Message]:
        """The results, then the text: results answer what came before."""
        if message.role == "system":
            yield SystemMessage(self._text_of(message.content, path))
            return
        if message.role == "assistant":
            yield self._assistant(message.content, path)
            return
        rest = [block for block in message.content if not isinstance(block, ToolResultBlock)]
        for position, block in enumerate(message.content):
            if isinstance(block, ToolResultBlock):
                yield ToolMessage(self._result(block, f"{path}[{position}].content"), block.tool_use_id)
        if rest or not message.content:
            yield UserMessage(self._text_of(rest, path))

    def _assistant(self, blocks: Sequence[Block], path: str) -> AssistantMessage:
        thoughts = [_thought(block) for block in blocks if isinstance(block, ThinkingBlock)]
        calls = [PastCall(one.id, one.name, one.input) for one in blocks if isinstance(one, ToolUseBlock)]
        rest = [block for block in blocks if not isinstance(block, ThinkingBlock | ToolUseBlock)]
        return AssistantMessage(self._text_of(rest, path), "".join(thoughts) or None, tuple(calls))

    def _result(self, block: ToolResultBlock, path: str) -> str:
        text = self._text_of(block.content or (), path)
        return failed_text(text) if block.is_error else text

    def _text_of(self, blocks: Sequence[Block], path: str) -> str:
        """The blocks' text: texts are joined as they stand, other blocks stand on lines of their own."""
        joined, was_text = "", True
        for position, block in enumerate(blocks):
            text = self._block_text(block, f"{path}[{position}]")
            is_text = isinstance(block, TextPart)
            separate = bool(joined and text) and not (is_text and was_text) and not joined.endswith("\n")
            joined += ("\n" if separate else "") + text
            was_text = is_text
        return joined

    def _block_text(self, block: Block, path: str) -> str:
        match block:
            case TextPart():
                return block.text
            case DocumentBlock():
                source = block.source
                text = source.data if isinstance(source, TextSource) else self._text_of(source.content, path)
                return "\n".join(part for part in (block.title, block.context, text) if part)
            case SearchResultBlock():
                return "\n".join([block.title, block.source, *(part.text for part in block.content)])
            case ToolReferenceBlock():
                return block.tool_name
            case _:
                self.notes.append(Note("left_out", path, f"A block of type '{block.type}' was left out."))
                return ""


def _thought(block: ThinkingBlock) -> str:
    """The block's text, or what our signature carries instead. Raises RequestRefused for a damaged signature."""
    carried = (block.signature or "").removeprefix(SIGNATURE)
    if block.thinking or not carried or carried == block.signature:
        return block.thinking
    try:
        return base64.b64decode(carried, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise bad("Invalid `signature` in `thinking` block: send it back as it was received.", "messages") from error


def _without_split_replies(located: Sequence[Located]) -> list[Located]:
    """Join a reply to the one directly before it where that has calls: a reply may be sent one block a message."""
    joined: list[Located] = []
    for index, message in located:
        before = joined[-1][1] if joined else None
        if isinstance(message, AssistantMessage) and isinstance(before, AssistantMessage) and before.calls:
            reasoning = (before.reasoning or "") + (message.reasoning or "") or None
            joined[-1] = (index, AssistantMessage(before.text + message.text, reasoning, before.calls + message.calls))
        else:
            joined.append((index, message))
    return joined


def _paired(located: Sequence[Located]) -> Iterator[Message]:
    """Every reply, then the results of its calls in their order, then what else came before the next reply."""
    at = 0
    while at < len(located):
        start, message = at, located[at][1]
        at += 1
        while at < len(located) and not isinstance(located[at][1], AssistantMessage):
            at += 1
        calls = message.calls if isinstance(message, AssistantMessage) else ()
        behind = located[start + isinstance(message, AssistantMessage) : at]
        if isinstance(message, AssistantMessage):
            yield message
        yield from _results(calls, behind, located[start][0])
        yield from (one for _, one in behind if not isinstance(one, ToolMessage))


def _results(calls: Sequence[PastCall], behind: Sequence[Located], reply_index: int) -> Iterator[ToolMessage]:
    """Results in the order of their calls. Raises RequestRefused where the two do not match, in Anthropic's words."""
    results: dict[str, list[ToolMessage]] = {}
    num_calls = Counter(call.id for call in calls)
    for index, message in behind:
        if not isinstance(message, ToolMessage):
            continue
        if len(results.get(message.call_id, ())) >= max(1, num_calls[message.call_id]):
            text = "each `tool_use` must have a single result. Found multiple `tool_result` blocks with id: "
            raise bad(text + message.call_id, f"messages[{index}]")
        if message.call_id not in num_calls:
            text = (
                f"unexpected `tool_use_id` found in `tool_result` blocks: {message.call_id}. Each `tool_result` block"
            )
            text += " must have a corresponding `tool_use` block in the previous message."
            raise bad(text, f"messages[{index}]")
        results.setdefault(message.call_id, []).append(message)
    if unanswered := [call_id for call_id in num_calls if call_id not in results]:
        text = "`tool_use` ids were found without `tool_result` blocks immediately after: " + ", ".join(unanswered)
        text += ". Each `tool_use` block must have a corresponding `tool_result` block in the next message."
        raise bad(text, f"messages[{reply_index}]")
    yield from (results[call.id].pop(0) for call in calls if results[call.id])
