"""Compaction: the user's messages as they stand, and one item with the model's own summary of everything else.

The summary is asked for behind the conversation itself, so that its prompt is in the prefix cache. A conversation that
does not fit into the window loses its oldest messages first, and the reply says how many.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET

from server.api.chat.to_reply import new_id
from server.api.chat.wire import Notes
from server.api.errors import encode
from server.api.responses.plan import ResponsePlan
from server.api.responses.reasoning_seal import ReasoningSeal
from server.api.responses.to_reply import usage_of
from server.api.responses.wire import CompactedResponse, CompactionItem
from server.api.sse import DATA_FRAMES
from server.chat_request import ChatRequest, UserMessage
from server.dialects.base import Choice
from server.errors import ServeError
from server.events import Ended, Text
from server.notes import Note
from server.reply.trace import fold_trace
from server.service import Generation, RequestObserver

WINDOW_SHARE = 4  # of the window: what the summary may take, and the messages of the user that stay
BYTES_A_TOKEN = 3  # of texts, at least
MAX_SUMMARY_TOKENS = 2048
KEPT_ROLES = ("user", "system", "developer")
PROMPT = (
    "Stop here. Write a summary of this conversation for someone who goes on with it and sees nothing of it but my "
    "messages: what was done and found out, with names, paths, numbers and results of tools as they are; what was "
    "decided and why; what is still open, and the next step. Write the summary alone."
)


class CompactionPlan:
    """A request for the compact form of a conversation, `plan` being a response that would continue it."""

    def __init__(self, plan: ResponsePlan, seal: ReasoningSeal, window: int) -> None:
        sent = plan.request
        self.request: ChatRequest = replace(
            sent,
            messages=(*sent.messages, UserMessage(PROMPT)),
            max_tokens=min(MAX_SUMMARY_TOKENS, window // WINDOW_SHARE),
            choice=Choice("none"),
            answer=None,
            thinking=False,
            must_answer=True,
            on_overflow="drop-oldest",
        )
        self.stream = False
        self.framing = DATA_FRAMES
        self._items = [*plan.earlier, *plan.items]
        self._seal = seal
        self._kept_bytes = window // WINDOW_SHARE * BYTES_A_TOKEN

    def observers(self) -> Sequence[RequestObserver]:
        """None."""
        return ()

    def refused(self, error: ServeError) -> Sequence[CompactedResponse]:
        """No events: there is no stream."""
        return ()

    async def events(self, generation: Generation) -> AsyncGenerator[list[CompactedResponse], None]:
        """The one reply."""
        texts: list[str] = []
        is_cut = False
        try:
            async with aclosing(generation.events()) as arrivals:
                async for event in (one.parsed.event async for events in arrivals for one in events):
                    if isinstance(event, Text):
                        texts.append(event.text)
                    elif isinstance(event, Ended):
                        is_cut = event.finish == "length"
            yield [self._reply("".join(texts).strip(), is_cut, generation)]
        finally:
            await generation.aclose()

    def encode(self, events: Sequence[CompactedResponse], generation: Generation) -> bytes:
        """JSON of the reply."""
        return encode(events[-1])

    def _reply(self, summary: str, is_cut: bool, generation: Generation) -> CompactedResponse:
        kept, notes = _kept_messages(self._items, self._kept_bytes)
        if is_cut:
            notes.append(Note("compacted", "input", "the summary reached its limit of tokens and was cut there."))
        id_ = new_id()
        item = CompactionItem(f"cmp_{id_}", self._seal.seal(summary))
        prepared = generation.prepared
        all_notes = Notes(dropped_messages=prepared.dropped_messages, notes=[*notes, *prepared.notes])
        if (trace := generation.take_trace()) is not None:
            all_notes.trace = fold_trace([trace])
        return CompactedResponse(
            id=f"resp_{id_}",
            created_at=int(time.time()),
            output=[*kept, msgspec.to_builtins(item)],
            usage=usage_of(generation.usage),
            toolwire=all_notes if all_notes != Notes() else UNSET,
        )


def _kept_messages(items: Sequence[Mapping[str, Any]], max_bytes: int) -> tuple[list[Mapping[str, Any]], list[Note]]:
    """The messages that stay, the newest within `max_bytes` and at least one; and notes on what does not stay."""
    messages = [item for item in items if item["type"] == "message" and item["role"] in KEPT_ROLES]
    others = Counter(str(item["type"])[:64] for item in items) - Counter(str(one["type"])[:64] for one in messages)
    num_bytes, first = 0, len(messages)
    while first > 0:
        num_bytes += len(msgspec.json.encode(messages[first - 1]["content"]))
        if num_bytes > max_bytes and first < len(messages):
            break
        first -= 1
    notes = []
    if others:
        listed = ", ".join(f"{number} {kind}" for kind, number in sorted(others.items()))
        notes.append(Note("compacted", "input", f"these items stand in the summary alone: {listed}."))
    if first:
        text = f"the oldest {first} of {len(messages)} messages, beyond a quarter of the window, stand there alone too."
        notes.append(Note("compacted", "input", text))
    return messages[first:], notes
