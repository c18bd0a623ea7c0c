"""vLLM's token route as an engine: what is sent to it, what is refused, what is made of its replies.

The server here is a stand-in that writes vLLM's format, as version 0.32 does and later ones do.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from server.backends import vllm as vllm_module
from server.backends.connector import connect_engine
from server.backends.engine_list import EngineList
from server.backends.routing import RoutingBackend
from server.backends.vllm import MAX_BODY_BYTES, MAX_LINE
from server.backends.vllm_request import body_of, grammar_of, unsupported
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.dialects.base import Choice, ConstraintSpec, Tool
from server.errors import ConstraintFailed, PromptTooLong, QueueFull, RequestFailed, Unsupported
from server.messages import Constraint, Generate, ReasoningPhase, Sampling
from server.model.sampling.grammar import LlguidanceGrammars
from tests.backends.remote_engines import MODEL, ids_of, states, until

KEY = "vllm key"
CONSTRAINT = Constraint('start: "yes" | "no"\n')
Write = Callable[[dict[str, Any]], Response]


def request(**changes: Any) -> Generate:
    plain = Generate("r", [1, 2, 3], Sampling(max_tokens=8, temperature=0.5, seed=7), stop_ids=(2, 5))
    return msgspec.structs.replace(plain, **changes)


def sampled(**changes: Any) -> Sampling:
    return msgspec.structs.replace(request().sampling, **changes)


def events(*choices: dict[str, Any], end: str = "data: [DONE]\n\n") -> Response:
    """A stream of these choices, an event each."""
    lines = "".join(f"data: {json.dumps({'request_id': 'r', 'choices': [one]})}\n\n" for one in choices)
    return StreamingResponse(iter([lines, end]), media_type="text/event-stream")


def error(status: int, text: str) -> Response:
    return JSONResponse({"error": {"message": text, "type": "BadRequestError", "code": status}}, status)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(BUILT_IN_FOLDER)


@contextlib.asynccontextmanager
async def vllm(checkpoint: Checkpoint, write: Write, **replies: Any) -> AsyncIterator[tuple[str, list[Any]]]:
    """The address of a stand-in that answers requests by `write`, and the bodies that it got."""
    app, bodies = FastAPI(), list[Any]()

    def allowed(headers: Any) -> bool:
        return bool(headers.get("authorization") == f"Bearer {KEY}")

    @app.get("/v1/models")
    async def models(asked: Request) -> Response:
        return JSONResponse({"data": [{"id": "served", "max_model_len": 512}]}, 200 if allowed(asked.headers) else 401)

    @app.post("/tokenize")
    async def tokenize(asked: Request) -> Any:
        text = (await asked.json())["prompt"].replace(replies.get("without", "\0"), "x")
        ids = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
        return {"tokens": replies.get("tokens", ids)}

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=replies.get("health", 200))

    @app.get("/metrics")
    async def metrics() -> Response:
        if not replies.get("has_metrics", True):
            return Response(status_code=404)
        info = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="200"} 1.0\n'
        return PlainTextResponse(f"vllm:num_requests_running 3.0\nvllm:kv_cache_usage_perc 0.25\n{info}")

    if replies.get("has_route", True):

        @app.post("/inference/v1/generate")
        async def generate(asked: Request) -> Response:
            bodies.append({**await asked.json(), "headers": dict(asked.headers)})
            return write(bodies[-1])

    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", bodies
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def routing(checkpoint: Checkpoint, url: str, key: str = KEY) -> AsyncIterator[RoutingBackend]:
    backend = RoutingBackend(EngineList([url]), lambda one: connect_engine(checkpoint, key, one), MODEL)
    starting = asyncio.create_task(backend.start())
    try:
        await asyncio.wait({starting, asyncio.create_task(until(lambda: states(backend)[url] != "connecting"))},
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        yield backend
    finally:
        await backend.close()
        await asyncio.gather(starting, return_exceptions=True)


async def test_a_reply_is_told_and_read_as_vllm_writes_it(checkpoint: Checkpoint) -> None:
    def write(body: dict[str, Any]) -> Response:
        old = {"token": "token_id:11", "logprob": -0.5, "top_logprobs": [{"token": "token_id:12", "logprob": -0.1}]}
        new = {"token_id": 5, "logprob": -1.5, "top_logprobs": [{"token_id": 5, "logprob": -1.5, "rank": 1}]}
        return events(
            {"index": 0, "token_ids": [11], "logprobs": {"content": [old]}},
            {"index": 0, "token_ids": [5], "logprobs": {"content": [new]}, "finish_reason": "stop"},
        )

    sampling = sampled(num_logprobs=1, logit_bias={9: -2.0}, top_k=3, min_tokens=1)
    session = (("x-session-id", "one"),)
    asked = request(constraint=CONSTRAINT, cache_salt="salt", sampling=sampling, session=session)
    async with vllm(checkpoint, write) as (url, bodies), routing(checkpoint, url) as backend:
        deltas = [delta async for delta in backend.generate(asked)]
        pulse = await backend.health()
        (status,) = backend.engines()
    assert [delta.token_ids for delta in deltas] == [[11], [5]]
    assert [delta.finish for delta in deltas] == [None, "stop"]
    assert [one.logprob for delta in deltas for one in delta.logprobs or []] == [-0.5, -1.5]
    assert [one.top for delta in deltas for one in delta.logprobs or []] == [((12, -0.1),), ((5, -1.5),)]
    assert [one.stage for delta in deltas for one in delta.stage_times] == ["arrived", "admitted", "prefilled", "ended"]
    assert (pulse.running, pulse.total_blocks, pulse.used_blocks) == (3, 200, 50)
    assert (status.kind, status.state) == ("vllm", "up")
    (body,) = bodies
    assert (body["model"], body["token_ids"], body["cache_salt"], body["stream"]) == ("served", [1, 2, 3], "salt", True)
    assert body["headers"].items() >= {"x-session-id": "one", "authorization": f"Bearer {KEY}"}.items()
    assert body["sampling_params"].items() >= {
        "max_tokens": 8, "temperature": 0.5, "seed": 7, "top_k": 3, "min_tokens": 1, "logprobs": 1,
        "stop_token_ids": [2, 5], "ignore_eos": False, "logit_bias": {"9": -2.0},
        "structured_outputs": {"grammar": CONSTRAINT.source},
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": Sampling(max_tokens=0)}, "max_tokens: 0"),
        ({"prompt_logprobs": 2}, "logprobs of a prompt"),
        ({"adapter": "sql"}, "an adapter"),
        ({"reasoning_phase": ReasoningPhase(9, limit=100)}, "budget"),
        ({"reply_ids": [4], "constraint": CONSTRAINT}, "under a grammar"),
        ({"reply_ids": [4], "sampling": sampled(presence_penalty=0.5)}, "under penalties"),
    ],
)
async def test_what_vllm_cannot_be_told_is_refused_and_not_left_out(
    checkpoint: Checkpoint, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(Unsupported, match=words):
        body_of(request(**changes), "served")
    if "reply_ids" in changes:  # not a client's
        return
    async with vllm(checkpoint, lambda _: events()) as (url, bodies), routing(checkpoint, url) as backend:
        with pytest.raises(Unsupported, match=words):
            await ids_of(backend, request(**changes))
        assert bodies == []


def test_a_reply_that_was_begun_elsewhere_goes_on_behind_its_ids() -> None:
    body = body_of(request(reply_ids=[8, 9], sampling=sampled(min_tokens=3, ignore_eos=True)), "served")
    assert body["token_ids"] == [1, 2, 3, 8, 9]
    parameters = body["sampling_params"]
    assert (parameters["max_tokens"], parameters["min_tokens"]) == (6, 1)
    assert (parameters["stop_token_ids"], parameters["ignore_eos"]) == ([], True)
    assert unsupported(request()) == ""


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(400, "This model's maximum context length is 512 tokens."), PromptTooLong),
        (error(400, "Grammar error: lexer"), ConstraintFailed),
        (error(400, "top_k must be -1"), Unsupported),
        (error(429, "too many"), QueueFull),
        (error(503, "too many"), QueueFull),
        (events(end='data: {"error": {"message": "out of memory", "code": 500}}\n\n'), RequestFailed),
    ],
)
async def test_its_errors_are_the_errors_of_this_server(
    checkpoint: Checkpoint, reply: Response, kind: type[Exception]
) -> None:
    async with vllm(checkpoint, lambda _: reply) as (url, _), routing(checkpoint, url) as backend:
        with pytest.raises(kind):
            await ids_of(backend, request(constraint=CONSTRAINT))


async def test_a_gateway_without_metrics_is_no_server_that_is_lost(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies longer than some seconds broke off behind one, and began again at the next server."""
    monkeypatch.setattr(vllm_module, "POLL_S", 0.05)
    monkeypatch.setattr(vllm_module, "SILENCE_S", 0.2)

    def write(body: dict[str, Any]) -> Response:
        async def slowly() -> AsyncIterator[str]:
            for token_id in (11, 12, 13):
                await asyncio.sleep(0.3)
                choice = {"token_ids": [token_id], "finish_reason": "length" if token_id == 13 else None}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"

        return StreamingResponse(slowly())

    async with vllm(checkpoint, write, has_metrics=False) as (url, bodies), routing(checkpoint, url) as backend:
        assert await ids_of(backend, request()) == [11, 12, 13]
    assert len(bodies) == 1


@pytest.mark.parametrize("fault", ["cut", "abort", "server error", "engine died"])
async def test_a_stream_that_stops_in_the_middle_goes_on(checkpoint: Checkpoint, fault: str) -> None:
    """vLLM's route tells the death of its engine as an error of each request, which is not the request's."""
    first = {"index": 0, "token_ids": [11, 12]}

    def write(body: dict[str, Any]) -> Response:
        if body["token_ids"][-1] == 12:
            return events({"index": 0, "token_ids": [13], "finish_reason": "length"})
        if fault == "server error":
            return events(first, end='data: {"choices": [{"token_ids": [], "finish_reason": "error"}]}\n\n')
        if fault == "engine died":
            return events(first, end='data: {"error": {"message": "EngineDeadError", "code": 500}}\n\n')
        return events(*([first, {"finish_reason": "abort"}] if fault == "abort" else [first]), end="")

    status = 503 if fault == "engine died" else 200
    async with vllm(checkpoint, write, health=status) as (url, bodies), routing(checkpoint, url) as backend:
        assert await ids_of(backend, request()) == [11, 12, 13]
        assert [body["sampling_params"]["max_tokens"] for body in bodies] == [8, 6]


@pytest.mark.parametrize(
    ("replies", "key", "words"),
    [
        ({"tokens": [1, 2]}, KEY, "another vocabulary"),
        ({"tokens": 5}, KEY, "neither a toolwire engine nor a vLLM server"),
        ({"tokens": "x" * (MAX_BODY_BYTES + 1)}, KEY, "is longer than"),
        ({"without": "<think>"}, KEY, "another vocabulary"),
        ({"has_route": False}, KEY, "--enable-scale-out"),
        ({}, "another", "--engine-key"),
    ],
)
async def test_a_vllm_server_that_cannot_be_used_is_told_in_one_line(
    checkpoint: Checkpoint, replies: dict[str, Any], key: str, words: str
) -> None:
    """Families with one vocabulary differ in the tokens that were added: Qwen2.5 has no `<think>`."""
    async with vllm(checkpoint, lambda _: events(), **replies) as (url, _), routing(checkpoint, url, key) as backend:
        await until(lambda: states(backend)[url] == "refused")
        assert words in backend.engines()[0].detail


@pytest.mark.parametrize(
    "text",
    ["data: {broken\n\n", f'data: {{"error": {{"x": {"[" * 5000}', "data: " + "x" * (MAX_LINE + 1)],
    ids=["broken", "deep", "endless"],
)
async def test_events_that_are_none_take_the_server_out(checkpoint: Checkpoint, text: str) -> None:
    """Each once left the request waiting for ever, or held whatever the server sent."""
    held_open = asyncio.Event()

    async def lines() -> AsyncIterator[str]:
        yield text if text.endswith("\n") or "x" * 9 in text else f"{text}\n"
        await held_open.wait()

    reply = StreamingResponse(lines(), media_type="text/event-stream")
    async with vllm(checkpoint, lambda _: reply) as (url, _), routing(checkpoint, url) as backend:
        reading = asyncio.create_task(ids_of(backend, request()))
        await until(lambda: states(backend)[url] == "refused")
        held_open.set()
        reading.cancel()


# -- the grammar of a whole reply ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grammars(checkpoint: Checkpoint) -> LlguidanceGrammars:
    size = checkpoint.tokenizer.get_vocab_size()
    return LlguidanceGrammars((BUILT_IN_FOLDER / "tokenizer.json").read_bytes(), size, checkpoint.stop_ids)


@pytest.fixture(scope="module")
def forced_call(checkpoint: Checkpoint) -> str:
    """The grammar of a reply that is one call."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    spec = ConstraintSpec(
        tools=(Tool("count", schema, strict=True),),
        choice=Choice("required"),
        answer=None,
        marker_ids={text: checkpoint.marker_ids[text] for text in checkpoint.dialect.markers},
        after_thinking=True,
    )
    constraint = checkpoint.dialect.constrain(spec)
    assert constraint is not None
    return constraint.source


CALL = '<tool_call>\n{"name": "count", "arguments": {"n": 5}}\n</tool_call>'


def admitted(checkpoint: Checkpoint, grammars: LlguidanceGrammars, grammar: str, *pieces: str | int) -> bool:
    """Whether the grammar admits all of these texts and token ids."""
    ids: list[int] = []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else checkpoint.tokenizer.encode(piece, add_special_tokens=False).ids
    matcher = grammars.compile(Constraint(grammar))
    return all(matcher.count_allowed([token_id]) == 1 and matcher.advance([token_id]) for token_id in ids)


def test_a_think_block_may_come_before_a_forced_call(
    checkpoint: Checkpoint, grammars: LlguidanceGrammars, forced_call: str
) -> None:
    """vLLM applies a grammar from the first token on: without the block a thinking model could not think."""
    assert checkpoint.think is not None
    opened, closed = checkpoint.think.open, checkpoint.think.close
    inside = grammar_of(forced_call, ReasoningPhase(closed))
    assert admitted(checkpoint, grammars, inside, "Let me count: five.", closed, "\n\n" + CALL)
    assert admitted(checkpoint, grammars, inside, closed, CALL)
    assert not admitted(checkpoint, grammars, inside, "Let me count.", CALL)
    undecided = grammar_of(forced_call, ReasoningPhase(closed, opened))
    assert admitted(checkpoint, grammars, undecided, opened, "Five.", closed, "\n\n" + CALL)
    assert admitted(checkpoint, grammars, undecided, CALL)
    assert not admitted(checkpoint, grammars, undecided, "Five.", closed, CALL)
    assert grammar_of(forced_call, None) == forced_call


def test_the_limit_of_a_think_block_is_in_the_grammar(
    checkpoint: Checkpoint, grammars: LlguidanceGrammars, forced_call: str
) -> None:
    """A forced call needs what is left of max_tokens."""
    assert checkpoint.think is not None
    closed = checkpoint.think.close
    words = checkpoint.tokenizer.encode("one two three four five six seven eight", add_special_tokens=False).ids
    limited = grammar_of(forced_call, ReasoningPhase(closed, limit=4))
    assert admitted(checkpoint, grammars, limited, *words[:3], closed, CALL)
    assert not admitted(checkpoint, grammars, limited, *words, closed, CALL)
    none = grammar_of(forced_call, ReasoningPhase(closed, limit=0))
    assert admitted(checkpoint, grammars, none, closed, CALL)
    assert not admitted(checkpoint, grammars, none, *words[:1], closed, CALL)
