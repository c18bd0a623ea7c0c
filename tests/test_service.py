"""ChatService: requests over a scripted backend, without HTTP."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from server.chat_request import ChatRequest, PreparedRequest, UserMessage
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.dialects.base import Choice, Tool
from server.errors import ConstraintFailed, DeadlinePassed, QueueFull, RequestFailed
from server.events import CallOpened, Ended, Text, Thought
from server.messages import Constraint, Delta, Generate, Sampling
from server.prompt.reasoning import call_openers
from server.reply.decoder import ReplyFormat
from server.reply.text import Vocabulary
from server.service import ChatService, Generation, reply_format
from tests.backends.scripted import Script, ScriptedBackend, deltas
from tests.reply.alphabet import IM_END, VOCABULARY, ids_of

SAMPLING = Sampling(max_tokens=10)
REQUEST = ChatRequest("a", [UserMessage("Hi")], SAMPLING)


def prepared(n: int = 1, constraint: Constraint | None = None) -> PreparedRequest:
    ones = tuple(Generate(f"a-{i}", [1, 2, 3], SAMPLING, (IM_END,), constraint) for i in range(n))
    return PreparedRequest(ones, 3, "off")


def service_over(scripts: Sequence[Script], **fields: Any) -> tuple[ChatService, ScriptedBackend]:
    backend = ScriptedBackend(lambda request: scripts[int(request.id.split("-")[1])])
    reply = ReplyFormat(VOCABULARY, frozenset({IM_END}), **fields)
    return ChatService(lambda _: prepared(len(scripts)), lambda _: (), lambda *_: reply, backend), backend


async def events_of(generation: Generation) -> list[tuple[int, object]]:
    return [(one.choice, one.parsed.event) for step in [s async for s in generation.events()] for one in step]


async def test_the_events_of_all_choices_come_as_they_are_written() -> None:
    slow: Script = [Delta(""), 0.05, *deltas([*ids_of("b"), IM_END])[1:]]
    service, backend = service_over([slow, deltas([*ids_of("a"), IM_END])])
    out = await events_of(await service.start(REQUEST))
    assert out == [(1, Text("a")), (1, Ended("stop")), (0, Text("b")), (0, Ended("stop"))]
    assert not backend.running and not backend.aborted


async def test_usage_counts_the_prompt_once_and_cached_tokens_of_the_first_choice() -> None:
    scripts = [[Delta("", cached=2), *deltas([*ids_of("ab"), IM_END])[1:]] for _ in range(3)]
    service, _ = service_over(scripts)
    generation = await service.start(REQUEST)
    await events_of(generation)
    usage = generation.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (3, 2, 9)


async def test_a_choice_that_needs_no_more_is_aborted_while_the_others_go_on() -> None:
    stopped: Script = [Delta(""), *(Delta("", [i]) for i in ids_of("a END")), 30.0]
    service, backend = service_over([stopped, deltas([*ids_of("b"), IM_END])], stop=("END",))
    out = await asyncio.wait_for(events_of(await service.start(REQUEST)), 5)
    assert (0, Ended("stop", stop="END")) in out and (1, Ended("stop")) in out
    assert backend.aborted == ["a-0"]


async def test_a_refusal_of_one_choice_is_raised_and_nothing_goes_on() -> None:
    service, backend = service_over([[Delta(""), 30.0], [0.02, QueueFull("full")], [30.0]])
    with pytest.raises(QueueFull):
        await asyncio.wait_for(service.start(REQUEST), 5)
    assert not backend.running


async def test_a_fault_of_one_choice_in_mid_reply_ends_all() -> None:
    service, backend = service_over([[Delta(""), 30.0], [Delta(""), 0.02, RequestFailed("broken")]])
    generation = await service.start(REQUEST)
    with pytest.raises(RequestFailed):
        await asyncio.wait_for(events_of(generation), 5)
    assert not backend.running


async def test_a_reply_without_an_end_is_a_fault() -> None:
    service, _ = service_over([[Delta(""), Delta("", ids_of("a"))]])
    with pytest.raises(RequestFailed, match="without saying why"):
        await events_of(await service.start(REQUEST))


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("script", [[30.0, Delta("")], [Delta(""), 30.0]], ids=["queued", "writing"])
async def test_a_deadline_ends_what_runs(n: int, script: Script) -> None:
    service, backend = service_over([script] * n)
    with pytest.raises(DeadlinePassed):
        await events_of(await service.start(REQUEST, time.monotonic() + 0.05))
    assert not backend.running and len(backend.aborted) == n


@pytest.mark.parametrize("n", [1, 2])
async def test_a_cancelled_reader_leaves_nothing_running(n: int) -> None:
    service, backend = service_over([[Delta(""), 30.0]] * n)
    reader = asyncio.create_task(events_of(await service.start(REQUEST)))
    await asyncio.sleep(0.02)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.sleep(0)
    assert not backend.running and len(backend.aborted) == n


async def test_a_constraint_that_fails_names_the_field_it_came_from() -> None:
    for request, param in ((replace(REQUEST, tools=[Tool("f")]), "tools"), (REQUEST, "response_format")):
        service, _ = service_over([[ConstraintFailed("no")]])
        with pytest.raises(ConstraintFailed) as failed:
            await service.start(request)
        assert failed.value.param == param


async def test_a_promised_call_is_not_read_out_of_the_thoughts() -> None:
    """The grammar holds behind the block: markup inside it is unconstrained, and the promised call is still to come."""
    checkpoint = Checkpoint.open(BUILT_IN_FOLDER)
    vocabulary = Vocabulary(checkpoint.tokenizer)
    text = 'so <tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call></think>\n\n'
    text += '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    script = deltas([*checkpoint.tokenizer.encode(text, add_special_tokens=False).ids, checkpoint.stop_ids[0]])
    for mode, constraint, calls in (("required", Constraint(""), 1), ("auto", None, 2)):
        backend = ScriptedBackend(lambda _: script)
        request = replace(REQUEST, tools=[Tool("f")], choice=Choice(mode))  # type: ignore[arg-type]
        openers = call_openers(checkpoint, request)
        plan = replace(prepared(constraint=constraint), thinking="open", call_ids=openers.ids)
        service = ChatService(
            lambda _, plan=plan: plan,  # type: ignore[misc]
            lambda _: (),
            lambda request, plan: reply_format(checkpoint, vocabulary, request, plan),
            backend,
        )
        out = [event for _, event in await events_of(await service.start(request))]
        assert sum(isinstance(event, CallOpened) for event in out) == calls
        assert isinstance(out[0], Thought)
