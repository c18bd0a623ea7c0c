"""Connection to a vLLM server, by its token route: `vllm serve MODEL --enable-scale-out`.

`POST /inference/v1/generate` takes token ids, sampling parameters and a grammar, and streams token ids. What it cannot
be told is refused (`vllm_request.py`). Heartbeats are made of its `/metrics`, which is read once a second.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from server.backends.protocol import UNREADABLE, FromRemote, OtherLoad, ToRemote
from server.backends.remote import EngineLost, EngineRefused
from server.backends.vllm_request import body_of
from server.errors import Unsupported
from server.messages import (
    Abort,
    Delta,
    Failed,
    FailureKind,
    Finish,
    Generate,
    Pulse,
    Ready,
    StageTime,
    TokenLogprob,
)

logger = logging.getLogger("toolwire.engine")

GENERATE, MODELS, METRICS, TOKENIZE = "/inference/v1/generate", "/v1/models", "/metrics", "/tokenize"
TIMEOUT_S = 10.0
POLL_S = 1.0
POLL_TIMEOUT_S, SILENCE_S = 10.0, 20.0  # of one answer; of all, as slow as a server on a busy CPU may be
CONNECT_TIMEOUT_S = 30.0  # for all that is asked before the first request
MAX_LINE = 4 * 1024 * 1024  # characters of one event
MAX_BODY_BYTES = 32 * 1024 * 1024  # of what is no stream
MAX_ADDED_TOKENS = 64  # of which the ids are compared
# Texts whose tokens tell one vocabulary from another: words, digits, code, other scripts.
PROBE = "The 12,345 quick brown foxes jump over def f(x): return x ** 2 — Straße, 東京の天気, Привет мир, 🌍"


class VllmLogprob(msgspec.Struct):
    """A logprob: newer versions name the token by its id, older ones by `token_id:N`."""

    token_id: int | None = None
    token: str = ""
    logprob: float | None = None
    top_logprobs: list["VllmLogprob"] = []

    def as_logprob(self, num_top: int) -> TokenLogprob:
        """The same as a message has it."""
        top = tuple((one.id, one.value) for one in self.top_logprobs[:num_top])
        return TokenLogprob(self.id, self.value, top)

    @property
    def id(self) -> int:
        """The token. Raises ValueError for a name that is none."""
        return self.token_id if self.token_id is not None else int(self.token.removeprefix("token_id:"))

    @property
    def value(self) -> float:
        """The logprob; the least one for a token that has none."""
        return -9999.0 if self.logprob is None else self.logprob


class VllmLogprobs(msgspec.Struct):
    """The logprobs of one event."""

    content: list[VllmLogprob] | None = None


class VllmChoice(msgspec.Struct):
    """What one event tells of the sequence."""

    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: VllmLogprobs | None = None


class VllmEvent(msgspec.Struct):
    """One event of the stream: ids, or an error, or usage, which is left out here."""

    choices: list[VllmChoice] = []
    error: dict[str, Any] | None = None


class VllmConnection:
    """A vLLM server that was found ready. One HTTP request a sequence; ending it aborts the sequence."""

    kind = "vllm"
    fingerprint = None

    def __init__(self, client: httpx.AsyncClient, model: str, ready: Ready) -> None:
        self.ready = ready
        self._client = client
        self._model = model
        self._inbox: asyncio.Queue[FromRemote | EngineLost | EngineRefused] = asyncio.Queue()
        self._replies: dict[str, asyncio.Task[None]] = {}
        self._poller = asyncio.create_task(self._poll(), name="heartbeats of a vLLM server")

    def send(self, message: ToRemote) -> None:
        """Begin a request, or end one."""
        match message:
            case Abort(id=id):
                if (task := self._replies.get(id)) is not None:
                    task.cancel()
            case Generate(id=id):
                task = self._replies[id] = asyncio.create_task(self._reply(message), name=f"reply {id}")
                task.add_done_callback(lambda _: self._replies.pop(id, None))

    async def receive(self) -> list[FromRemote]:
        """What has arrived; at least one message."""
        messages: list[FromRemote] = []
        while not messages or not self._inbox.empty():
            item = await self._inbox.get()
            if isinstance(item, EngineLost | EngineRefused):
                raise item
            messages.append(item)
        return messages

    async def close(self) -> None:
        """End every request."""
        tasks = [self._poller, *self._replies.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _reply(self, request: Generate) -> None:
        try:
            await self._stream(request)
        except Unsupported as error:
            self._put(Failed(request.id, "unsupported", str(error)))
        except EngineLost as lost:
            self._put(lost)
        except httpx.HTTPError as error:
            self._put(EngineLost(f"a request broke off: {_text(error)}"))
        except (ValueError, *UNREADABLE) as error:
            self._put(EngineRefused(f"it sends what is no event of its token route: {_text(error)}"))
        except Exception as error:  # the edge of a request: it fails alone
            logger.exception("a request to a vLLM server failed")
            self._put(Failed(request.id, "request_failed", f"{type(error).__name__}: {error}"))

    async def _stream(self, request: Generate) -> None:
        began_s = time.monotonic()
        body = body_of(request, self._model)
        timeout, headers = httpx.Timeout(TIMEOUT_S, read=None), dict(request.session)
        async with self._client.stream("POST", GENERATE, json=body, timeout=timeout, headers=headers) as reply:
            if reply.status_code != 200:
                self._put(_refusal(request, reply.status_code, _message_of(await _body(reply))))
                return
            times: tuple[StageTime, ...] = (StageTime("arrived", began_s),)
            async for line in _lines(reply):
                if not line.startswith("data:") or (data := line.removeprefix("data:").strip()) == "[DONE]":
                    continue
                event = msgspec.json.decode(data, type=VllmEvent)
                if event.error is not None:
                    self._put(await self._failure(request, event.error))
                    return
                if not event.choices:
                    continue
                delta = _delta_of(request, event.choices[0], times)
                times = ()
                self._put(delta)
                if delta.finish is not None:
                    return
        self._put(EngineLost("a stream ended in the middle"))

    async def _failure(self, request: Generate, error: dict[str, Any]) -> Failed | EngineLost:
        """What an error within a stream is: of this request, or of a server whose engine has died, as /health tells."""
        text = str(error.get("message", error))
        status, _ = await _fetch(self._client, "GET", "/health")
        if status != 200:
            return EngineLost(f"its /health answers {status}: {text}")
        return Failed(request.id, "request_failed", f"vLLM: {text}")

    async def _poll(self) -> None:
        answered_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    status, content = await _fetch(self._client, "GET", METRICS)
                if status == 404:  # a gateway, which has the figures of none of its servers
                    self._put(OtherLoad(0))
                else:
                    pulse = _pulse_of(content.decode())
                    self._put(pulse)
                    self._put(OtherLoad(max(0, pulse.running + pulse.waiting - len(self._replies))))
                answered_s = time.monotonic()
            except (httpx.HTTPError, TimeoutError, ValueError, OverflowError) as error:
                silent_s = time.monotonic() - answered_s
                if silent_s >= SILENCE_S:
                    self._put(EngineLost(f"it has not answered {METRICS} for {silent_s:.0f} s: {_text(error)}"))
                    return
            await asyncio.sleep(POLL_S)

    def _put(self, item: FromRemote | EngineLost | EngineRefused) -> None:
        self._inbox.put_nowait(item)


async def connect_vllm(
    url: str,
    key: str,
    vocab_size: int,
    encode: Callable[[str], Sequence[int]],
    max_model_len: int,
    added_tokens: Sequence[str] = (),
) -> VllmConnection:
    """A connection to the vLLM server at this URL; raises EngineLost and EngineRefused.

    `encode` is this checkpoint's own tokenizer, which must write the same ids as the server's, and `added_tokens` those
    that families with one vocabulary differ in.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.AsyncClient(
        base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False, limits=httpx.Limits(max_connections=None)
    )
    text = PROBE + "".join(added_tokens[:MAX_ADDED_TOKENS])
    async with contextlib.AsyncExitStack() as on_error:
        on_error.push_async_callback(client.aclose)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                card = (await _json(client, "GET", MODELS))["data"][0]
                probe = {"model": card["id"], "prompt": text, "add_special_tokens": False}
                ids = list((await _json(client, "POST", TOKENIZE, probe))["tokens"])
                status, routes = await _fetch(client, "GET", "/openapi.json")
        except httpx.HTTPError as error:
            raise EngineLost(f"it cannot be reached: {_text(error)}") from error
        except TimeoutError as error:
            raise EngineLost(f"it has not answered within {CONNECT_TIMEOUT_S:g} s") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise EngineRefused(f"it is neither a toolwire engine nor a vLLM server: {_text(error)}") from error
        if ids != list(encode(text)):
            raise EngineRefused("it serves another vocabulary: the same text has other token ids there")
        if status == 200 and GENERATE.encode() not in routes:
            raise EngineRefused("its token route is off: start it with --enable-scale-out")
        length = card.get("max_model_len")
        ready = Ready(
            device="vLLM",
            dtype="its own",
            vocab_size=vocab_size,
            max_model_len=length if isinstance(length, int) else max_model_len,
            num_blocks=0,
            block_size=1,
            weight_bytes=0,
            load_s=0.0,
        )
        on_error.pop_all()
        return VllmConnection(client, card["id"], ready)


async def _lines(reply: httpx.Response) -> AsyncIterator[str]:
    """The lines of a stream, of which no more than the last is held. Raises ValueError for one without an end."""
    held = ""
    async for piece in reply.aiter_text():
        *lines, held = (held + piece).split("\n")
        if len(held) > MAX_LINE:
            raise ValueError("an event without an end")
        for line in lines:
            yield line


async def _fetch(client: httpx.AsyncClient, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """Status and content of a reply that is no stream. Raises ValueError for one that is too long."""
    async with client.stream(method, path, json=body) as reply:
        return reply.status_code, await _body(reply)


async def _body(reply: httpx.Response) -> bytes:
    content = bytearray()
    async for piece in reply.aiter_bytes():
        content += piece
        if len(content) > MAX_BODY_BYTES:
            raise ValueError(f"its reply to {reply.request.url.path} is longer than {MAX_BODY_BYTES} bytes")
    return bytes(content)


async def _json(client: httpx.AsyncClient, method: str, path: str, body: object = None) -> Any:
    status, content = await _fetch(client, method, path, body)
    if status in (401, 403):
        raise EngineRefused("it requires another key (--engine-key)")
    if status >= 500:
        raise EngineLost(f"it answers {status}")
    if status != 200:
        raise ValueError(f"{path} answers {status}")
    return json.loads(content)


def _delta_of(request: Generate, choice: VllmChoice, times: tuple[StageTime, ...]) -> Delta:
    """The message of one event; `times` are those of the first."""
    finishes: dict[str, Finish] = {"stop": "stop", "length": "length"}
    finish = None
    if choice.finish_reason is not None:
        if choice.finish_reason not in finishes:
            raise EngineLost(f"it ended a reply by {choice.finish_reason!r}")
        finish = finishes[choice.finish_reason]
    now_s = time.monotonic()
    if times:
        times = (*times, StageTime("admitted", now_s), StageTime("prefilled", now_s))
    if finish is not None:
        times = (*times, StageTime("ended", now_s))
    num_top, logprobs = request.sampling.num_logprobs, None
    if num_top is not None and choice.logprobs is not None:
        logprobs = [one.as_logprob(num_top) for one in choice.logprobs.content or []]
    cached = 0 if len(times) > 1 and times[0].stage == "arrived" else None
    return Delta(request.id, choice.token_ids or [], logprobs, finish, cached, stage_times=times)


def _refusal(request: Generate, status: int, text: str) -> FromRemote | EngineLost | EngineRefused:
    """What becomes of a request that was answered with another status than 200."""
    if status in (401, 403):
        return EngineRefused("it requires another key (--engine-key)")
    if status in (404, 405):
        return EngineRefused("its token route is off: start it with --enable-scale-out")
    if status in (429, 503):  # 503: its queue is full; one whose engine has died answers 500
        return Failed(request.id, "queue_full", text, 1.0)
    if status >= 500:
        return EngineLost(f"it answers {status}: {text}")
    kind: FailureKind = "unsupported"
    if "context length" in text or "max_model_len" in text:
        kind = "too_long"
    elif request.constraint is not None and ("grammar" in text.lower() or "structured" in text.lower()):
        kind = "bad_constraint"
    return Failed(request.id, kind, f"vLLM: {text}")


def _message_of(body: bytes) -> str:
    try:
        content = json.loads(body)
        return str(content["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode("utf-8", "replace")


def _pulse_of(text: str) -> Pulse:
    """A heartbeat from vLLM's metrics; raises ValueError and OverflowError for what are none."""
    sums: dict[str, float] = {}
    blocks = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name == "vllm:cache_config_info" and sample.labels.get("num_gpu_blocks", "").isdigit():
                blocks = int(sample.labels["num_gpu_blocks"])
    return Pulse(
        time_s=time.monotonic(),
        running=int(sums.get("vllm:num_requests_running", 0)),
        waiting=int(sums.get("vllm:num_requests_waiting", 0)),
        total_blocks=blocks,
        used_blocks=round(blocks * sums.get("vllm:kv_cache_usage_perc", 0.0)),
        cached_blocks=0,
        prompt_tokens=int(sums.get("vllm:prompt_tokens_total", 0)),
        cached_tokens=int(sums.get("vllm:prefix_cache_hits_total", 0)),
        output_tokens=int(sums.get("vllm:generation_tokens_total", 0)),
        preemptions=int(sums.get("vllm:num_preemptions_total", 0)),
    )


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
