"""Chunks of any sequence of events, held against every clause that a client relies on, and against their fold."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.api.chat.to_reply import Chunker, ReplyStyle, fold
from server.api.chat.wire import ChatCompletionChunk, Notes
from server.api.errors import encode
from server.events import CallArguments, CallClosed, CallOpened, Ended, Event, Text, Thought
from server.reply.decoder import ParsedEvent, ScoredToken
from server.service import ChoiceEvent, TokenUsage

USAGE = TokenUsage(5, 2, 7, 3)
words = st.text(min_size=1, max_size=4)


@st.composite
def replies(draw: st.DrawFn) -> list[Event]:
    """One choice: any mixture that the pipeline can give."""
    events: list[Event] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "thought", "call", "custom"]), max_size=6)):
        if kind == "text":
            events.append(Text(draw(words)))
        elif kind == "thought":
            events.append(Thought(draw(words)))
        else:
            custom = kind == "custom"
            pieces = draw(st.lists(words, max_size=3))
            flags: Any = draw(st.sampled_from([(), ("repaired",), ("truncated", "invalid")]))
            events.append(CallOpened(calls, f"f{calls}", custom))
            events += [CallArguments(calls, piece) for piece in pieces]
            events.append(CallClosed(calls, flags, "raw" if flags else ""))
            calls += 1
    return [*events, Ended("tool_calls" if calls else "stop")]


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[int, list[ChoiceEvent]]:
    """Several choices, whose events come in any order that keeps each choice's own."""
    choices = draw(st.lists(replies(), min_size=1, max_size=3))
    left = [list(events) for events in choices]
    received = []
    while any(left):
        index = draw(st.sampled_from([i for i, events in enumerate(left) if events]))
        received.append(ChoiceEvent(index, ParsedEvent(left[index].pop(0))))
    return len(choices), received


def chunks_of(n: int, received: list[ChoiceEvent], style: ReplyStyle) -> list[ChatCompletionChunk]:
    chunker = Chunker(style)
    return [*chunker.open(n), *(chunk for one in received for chunk in chunker.feed(one)), *chunker.close(USAGE)]


@given(interleaved())
def test_every_clause_of_a_stream(drawn: tuple[int, list[ChoiceEvent]]) -> None:
    n, received = drawn
    chunks = [json.loads(encode(chunk)) for chunk in chunks_of(n, received, ReplyStyle("m", include_usage=True))]
    *chunks, usage = chunks
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 12
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:n]] == [{"role": "assistant", "content": ""}] * n
    for index in range(n):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [one["finish_reason"] is not None for one in own] == [False] * (len(own) - 1) + [True]
        assert own[-1]["delta"] == {}
        check_deltas([one["delta"] for one in own[1:-1]])


def check_deltas(deltas: list[dict[str, Any]]) -> None:
    opened = -1
    for delta in deltas:
        assert len(delta) == 1 and delta.keys() <= {"content", "reasoning_content", "tool_calls"}
        for piece in delta.get("tool_calls", []):
            if "id" in piece:
                opened += 1
                kind = piece["type"]
                assert piece == {"index": opened, "id": piece["id"], "type": kind, kind: piece[kind]}
                assert piece[kind]["name"] == f"f{opened}"
            else:
                (kind,) = piece.keys() - {"index"}
                assert piece["index"] == opened
                assert piece[kind].keys() == {"arguments" if kind == "function" else "input"}


@given(interleaved())
def test_the_fold_is_what_the_events_said(drawn: tuple[int, list[ChoiceEvent]]) -> None:
    n, received = drawn
    style = ReplyStyle("m")
    whole = json.loads(encode(fold(chunks_of(n, received, style), USAGE, style)))
    for index, choice in enumerate(whole["choices"]):
        events = [one.parsed.event for one in received if one.choice == index]
        message = choice["message"]
        text = "".join(event.text for event in events if isinstance(event, Text))
        thoughts = "".join(event.text for event in events if isinstance(event, Thought))
        opened = [event for event in events if isinstance(event, CallOpened)]
        assert message["content"] == (text if text or not opened else None)
        assert message.get("reasoning_content", "") == thoughts
        assert ("tool_calls" in message) == bool(opened)
        for event, call in zip(opened, message.get("tool_calls", []), strict=True):
            pieces = [e.text for e in events if isinstance(e, CallArguments) and e.index == event.index]
            closed = next(e for e in events if isinstance(e, CallClosed) and e.index == event.index)
            missing = "" if event.custom or "truncated" in closed.flags else "{}"
            parsed = "".join(pieces) or missing
            assert call[call["type"]] == {"name": event.name, ("input" if event.custom else "arguments"): parsed}
        flagged = [e.index for e in events if isinstance(e, CallClosed) and e.flags]
        notes = whole.get("toolwire", {}).get("calls", [])
        assert [note["index"] for note in notes if note["choice"] == index] == flagged


def test_what_has_nothing_to_say_is_not_sent() -> None:
    style = ReplyStyle("m")
    chunks = chunks_of(1, [ChoiceEvent(0, ParsedEvent(Ended("stop")))], style)
    assert b"toolwire" not in b"".join(encode(chunk) for chunk in chunks)
    assert b"usage" not in b"".join(encode(chunk) for chunk in chunks)
    assert encode(Notes([], 2)) == b'{"dropped_messages":2}'


def test_a_token_that_is_half_a_character_is_told_by_its_bytes() -> None:
    piece = "ä".encode()[:1]
    parsed = ParsedEvent(Text("ä"), (ScoredToken(piece, -0.5, ((piece, -0.5),)), ScoredToken("ä".encode()[1:], -0.1)))
    style = ReplyStyle("m", logprobs=True)
    whole = fold(
        chunks_of(1, [ChoiceEvent(0, parsed), ChoiceEvent(0, ParsedEvent(Ended("stop")))], style), USAGE, style
    )
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert b"".join(bytes(token.bytes) for token in logprobs.content).decode() == "ä"
    assert [token.token for token in logprobs.content] == ["\ufffd", "\ufffd"]
    assert logprobs.content[0].top_logprobs[0].bytes == list(piece)
