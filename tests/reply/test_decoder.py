"""The way out of one choice, at every split of its ids."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Literal

import pytest

from server.dialects.base import Tool
from server.dialects.hermes import HERMES
from server.events import CallArguments, CallClosed, CallOpened, Ended, Event, Text, Thought
from server.messages import Delta, TokenLogprob
from server.reply.decoder import ParsedEvent, RepeatDetector, ReplyDecoder, ReplyFormat
from server.reply.think import ThinkSpan
from tests.reply.alphabet import IM_END, VOCABULARY, ids_of

WEATHER = Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CLOCK = Tool("get_time", None)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🏔"}}\n</tool_call>'
CLOCK_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
Thinking = Literal["off", "open", "may_open"]


def reading(thinking: Thinking = "off", *, tools: bool = True, **others: object) -> ReplyFormat:
    return ReplyFormat(
        VOCABULARY,
        stop_ids=frozenset({IM_END}),
        thinking=thinking,
        call_markers=("<tool_call>",) if tools else (),
        parser=partial(HERMES.parser, (WEATHER, CLOCK)) if tools else None,
        **others,  # type: ignore[arg-type]
    )


def deltas(ids: Sequence[int], cuts: Iterable[int], finish: Literal["stop", "length"]) -> list[Delta]:
    edges = [0, *cuts, len(ids)]
    pieces = [Delta("x", list(ids[start:end])) for start, end in pairwise(edges)]
    return [*pieces[:-1], Delta("x", pieces[-1].token_ids, finish=finish)]


def events(how: ReplyFormat, script: Sequence[Delta]) -> list[Event]:
    turn = ReplyDecoder(how)
    said = [one for delta in script for one in turn.feed(delta)]
    assert turn.over
    return joined(one.event for one in said)


def joined(parts: Iterable[Event]) -> list[Event]:
    out: list[Event] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(last, Text) and isinstance(part, Text):
            out[-1] = Text(last.text + part.text)
        elif isinstance(last, Thought) and isinstance(part, Thought):
            out[-1] = Thought(last.text + part.text)
        elif isinstance(last, CallArguments) and isinstance(part, CallArguments):
            out[-1] = CallArguments(last.index, last.text + part.text)
        else:
            out.append(part)
    return out


def at_every_split(how: ReplyFormat, text: str, finish: Literal["stop", "length"] = "stop") -> list[Event]:
    """The events, checked to be the same for the whole, one id at a time, and every cut into two."""
    ids = [*ids_of(text), IM_END] if finish == "stop" else ids_of(text)
    whole = events(how, deltas(ids, [], finish))
    assert events(how, deltas(ids, range(1, len(ids)), finish)) == whole
    for cut in range(1, len(ids)):
        assert events(how, deltas(ids, [cut], finish)) == whole
    return whole


def test_plain_text() -> None:
    assert at_every_split(reading(tools=False), "Grüezi 🏔!") == [Text("Grüezi 🏔!"), Ended("stop")]


def test_an_empty_reply_still_ends() -> None:
    assert at_every_split(reading(), "") == [Ended("stop")]


def test_a_call_between_texts_keeps_both() -> None:
    out = at_every_split(reading(), f"Let me see.{CALL}")
    assert [type(event) for event in out] == [Text, CallOpened, CallArguments, CallClosed, Ended]
    assert out[0] == Text("Let me see.")
    arguments = out[2]
    assert isinstance(arguments, CallArguments)
    assert json.loads(arguments.text) == {"city": "Zürich 🏔"}
    assert out[-1] == Ended("tool_calls")


def test_two_calls_are_numbered() -> None:
    out = at_every_split(reading(), f"{CALL}\n{CLOCK_CALL}")
    assert [event.index for event in out if isinstance(event, CallOpened)] == [0, 1]
    assert out[-1] == Ended("tool_calls")


def test_without_parallel_calls_the_reply_ends_after_the_first() -> None:
    """Calls beyond the first are not written at all: they cannot be dropped once they have been streamed."""
    out = at_every_split(reading(parallel=False), f"{CALL}\n{CLOCK_CALL} and more")
    assert [event.name for event in out if isinstance(event, CallOpened)] == ["get_weather"]
    assert out[-1] == Ended("tool_calls")


@pytest.mark.parametrize("parallel", [True, False])
def test_length_wins_over_calls(parallel: bool) -> None:
    """A call that was cut off is closed at the end: that must not pass for the end of a single call."""
    out = at_every_split(reading(parallel=parallel), CALL[:-25], "length")
    assert out[-1] == Ended("length")
    assert any(isinstance(event, CallClosed) and "truncated" in event.flags for event in out)


@pytest.mark.parametrize("thinking", ["open", "may_open"])
def test_thoughts_come_apart_from_the_answer(thinking: Thinking) -> None:
    head = "<think>\n" if thinking == "may_open" else "\n"
    out = at_every_split(reading(thinking), f"{head}first\n\nsecond\n</think>\n\nThe answer.")
    assert out == [Thought("first\n\nsecond"), Text("The answer."), Ended("stop")]


def test_a_model_that_may_think_and_does_not_loses_nothing() -> None:
    assert at_every_split(reading("may_open"), " <thin air") == [Text(" <thin air"), Ended("stop")]
    assert at_every_split(reading("may_open"), "\n <") == [Text("\n <"), Ended("stop")]


def test_an_empty_think_block_is_no_thought() -> None:
    assert at_every_split(reading("may_open"), "<think>\n\n</think>\n\nHi") == [Text("Hi"), Ended("stop")]


def test_thinking_that_never_ends_is_all_thought() -> None:
    assert at_every_split(reading("open"), "on and on </thi", "length") == [Thought("on and on </thi"), Ended("length")]


def test_a_call_inside_an_unclosed_think_block_ends_the_thinking() -> None:
    """Seen of real models: the block is never closed, and the call was lost in the thoughts."""
    out = at_every_split(reading("open"), f"I need the weather.\n{CALL}")
    assert out[0] == Thought("I need the weather.")
    assert [type(event) for event in out[1:]] == [CallOpened, CallArguments, CallClosed, Ended]


def test_inside_a_think_block_a_call_is_opened_by_its_token_alone() -> None:
    """The engine holds to the schema what follows the token; spelled out, a call would come back held to nothing."""
    how = replace(reading("open"), call_ids=frozenset(ids_of("<tool_call>")), call_markers=())
    spelled = list(b"I would write <tool_call>")
    for text, thought in (("so\n", "I would write <tool_call>so"), ("</thi", "I would write <tool_call></thi")):
        ids = [*spelled, *ids_of(f"{text}{CALL}"), IM_END]
        for cuts in (range(0), range(1, len(ids))):
            out = events(how, deltas(ids, cuts, "stop"))
            assert out[0] == Thought(thought)
            assert [type(event) for event in out[1:]] == [CallOpened, CallArguments, CallClosed, Ended]
    at_every_split(how, f"first</think>\n\n{CALL}")


def test_without_tools_markup_in_thoughts_is_thought() -> None:
    out = at_every_split(reading("open", tools=False), "a <tool_call> b</think>c")
    assert out == [Thought("a <tool_call> b"), Text("c"), Ended("stop")]


def test_a_stop_string_ends_the_text_and_the_reply() -> None:
    out = at_every_split(reading(stop=("END",), tools=False), "one EN two END three")
    assert out == [Text("one EN two "), Ended("stop", stop="END")]


def test_a_stop_string_leaves_thoughts_markup_and_arguments_alone() -> None:
    """A line break as stop string would otherwise cut every call: its markup holds one."""
    out = at_every_split(reading("open", stop=("\n", "Zürich")), f"a\nb</think>{CALL}")
    assert out[0] == Thought("a\nb")
    assert out[-1] == Ended("tool_calls")
    assert any(isinstance(event, CallArguments) and "Zürich" in event.text for event in out)


def test_text_held_for_a_stop_string_comes_before_the_call() -> None:
    out = at_every_split(reading(stop=("see!",)), f"I see{CALL}")
    assert out[0] == Text("I see")
    assert isinstance(out[1], CallOpened)


def test_a_halt_of_the_dialect_ends_the_reply_before_its_parser() -> None:
    out = at_every_split(reading(halts=("Observation:",)), "Thought\nObservation: made up")
    assert out == [Text("Thought\n"), Ended("stop")]


def test_the_same_call_without_end_is_stopped() -> None:
    out = at_every_split(reading(), "\n".join([CALL] * 12))
    closed = [event for event in out if isinstance(event, CallClosed)]
    assert len(closed) < 12
    assert "repeated" in closed[-1].flags
    assert not any("repeated" in event.flags for event in closed[:-1])
    assert out[-1] == Ended("tool_calls")


def test_tokens_are_counted_as_they_were_written() -> None:
    turn = ReplyDecoder(reading("may_open"))
    text = "<think>\nhm\n</think>\n\nHi"
    turn.feed(Delta("x", [*ids_of(text), IM_END], finish="stop"))
    assert turn.completion_tokens == len(ids_of(text)) + 1
    assert turn.reasoning_tokens == len(ids_of("<think>\nhm\n</think>"))


def test_the_stop_id_counts_and_writes_nothing_even_if_it_is_no_special_token() -> None:
    how = reading(tools=False)
    close_tag = ids_of("</tool_call>")[0]
    turn = ReplyDecoder(ReplyFormat(how.vocabulary, frozenset({close_tag})))
    said = turn.feed(Delta("x", [*ids_of("a"), close_tag], finish="stop"))
    assert [one.event for one in said] == [Text("a"), Ended("stop")]
    assert turn.completion_tokens == 2


def scored(ids: Sequence[int]) -> list[TokenLogprob]:
    return [TokenLogprob(token_id, -0.5 - position, ((token_id, -0.5),)) for position, token_id in enumerate(ids)]


def say(how: ReplyFormat, text: str, step: int) -> list[ParsedEvent]:
    turn, ids = ReplyDecoder(how), [*ids_of(text), IM_END]
    scores = scored(ids)
    said: list[ParsedEvent] = []
    for at in range(0, len(ids), step):
        last = at + step >= len(ids)
        piece = Delta("x", ids[at : at + step], scores[at : at + step], "stop" if last else None)
        said += turn.feed(piece)
    return said


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_logprobs_stand_with_the_text_that_their_tokens_wrote(step: int) -> None:
    said = say(reading("may_open"), "<think>hm</think>\n\nGrüße 🏔", step)
    content = [one for one in said if isinstance(one.event, Text)]
    assert b"".join(token.piece for one in content for token in one.tokens).decode() == "Grüße 🏔"
    assert all(not one.tokens for one in said if isinstance(one.event, Thought))


def test_logprobs_of_a_text_cut_by_a_stop_string_end_with_it() -> None:
    said = say(reading(stop=("END",), tools=False), "a bEND", 1)
    assert b"".join(token.piece for one in said for token in one.tokens) == b"a b"


def test_logprobs_of_a_call_stand_with_its_events() -> None:
    """What the model wrote between a call and a text (its closing tag) belongs to neither."""
    said = say(reading(), f"Hm.{CALL}\nDone.", 1)
    text = b"".join(token.piece for one in said if isinstance(one.event, Text) for token in one.tokens)
    calls = b"".join(token.piece for one in said if not isinstance(one.event, Text) for token in one.tokens)
    assert text.replace(b"\n", b"") == b"Hm.Done."
    assert calls.decode() == CALL.removesuffix("\n</tool_call>")


def test_the_think_span_holds_back_only_what_may_be_a_tag() -> None:
    span = ThinkSpan("open", ("<think>", "</think>"))
    assert span.feed("abc") == [Thought("abc")]
    assert span.feed("def</th") == [Thought("def")]
    assert span.feed("is") == [Thought("</this")]


def test_case_21_the_third_identical_call_in_a_row_ends_the_reply() -> None:
    detector = RepeatDetector()
    assert [detector.feed("f", "{}") for _ in range(3)] == [False, False, True]
    other = RepeatDetector()
    calls = [("f", "1"), ("g", "1"), ("f", "1"), ("f", "2"), ("f", "2"), ("f", "1"), ("f", "1"), ("f", "1")]
    assert [other.feed(*call) for call in calls] == [False] * 7 + [True]


@pytest.mark.parametrize("step", [1, 3, 100])
def test_the_limit_of_text_counts_neither_thoughts_nor_calls(step: int) -> None:
    """A thinking model was cut at the default limit in the middle of a thought or of a call."""
    thought = "I think of the weather. " * 5
    text = f"<think>\n{thought}\n</think>\n\n{CALL}\n{CALL.replace('Zürich', 'Rome')}"
    ids = ids_of(text)
    how = reading("may_open", max_text_tokens=8)
    script = deltas([*ids, IM_END], range(step, len(ids), step), "stop")
    assert events(how, script)[-1] == Ended("tool_calls")
    written = events(how, deltas(ids_of("a b c d e f g h i j k l"), range(1, 12, step), "stop"))
    assert written[-1] == Ended("length")
    assert written[:-1] == events(how, deltas(ids_of("a b c d e f g h i j k l"), (), "stop"))[:-1]
    assert isinstance(written[0], Text) and written[0].text.startswith("a b") and "l" not in written[0].text


def test_a_call_that_begins_at_the_limit_of_text_is_a_call() -> None:
    ids = ids_of("It is " + CALL)
    before = len(ids_of("It is "))
    for limit in range(before + 1, len(ids)):
        ended = events(reading(max_text_tokens=limit), deltas([*ids, IM_END], range(1, len(ids)), "stop"))
        assert ended[-1] == Ended("tool_calls"), limit
