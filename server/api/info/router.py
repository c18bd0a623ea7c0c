"""Everything that is asked about the server rather than of the model: models, health, memory, metrics, token counts."""

import asyncio
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad, kind_of, read_object
from server.api.chat.router import ChatHandler, read_body
from server.api.errors import RequestRefused, error_of, no_such_model
from server.api.metrics import CONTENT_TYPE, Metrics
from server.api.middleware.auth import respond
from server.backends.base import Backend
from server.checkpoint.checkpoint import Checkpoint
from server.errors import ServeError, Starting
from server.prompt.window import Window
from server.service import ChatService

MOST_TOKENS = 1 << 20


def as_json(value: Any, status: int = 200) -> Response:
    """A plain value as a JSON reply."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class Info:
    """What the server tells about itself."""

    def __init__(self, name: str, window: Window, backend: Backend, metrics: Metrics) -> None:
        self._window = window
        self._backend = backend
        self._metrics = metrics
        self._model = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "toolwire",
        }

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return as_json({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}; the id may hold slashes."""
        name = request.path_params["id"]
        if name != self._model["id"]:
            raise RequestRefused(no_such_model(name))
        return as_json(self._described())

    def _described(self) -> dict[str, Any]:
        return {**self._model, "max_model_len": self._window.limit}

    async def health(self, request: Request) -> Response:
        """GET and HEAD / and /health: the process lives. Touches neither the engine nor the model."""
        return as_json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 once the model is loaded and the engine answers, 503 with the progress before."""
        try:
            pulse = await self._backend.health()
        except ServeError as error:
            fault = error_of(error)
            reply = respond(fault)
            if isinstance(error, Starting):
                body = msgspec.json.decode(fault.body())
                body["progress"] = {"stage": error.stage, "fraction": error.fraction}
                reply.body = msgspec.json.encode(body)
                reply.headers["content-length"] = str(len(reply.body))
            reply.status_code = 503
            return reply
        return as_json({"status": "ready", "running": pulse.running, "waiting": pulse.waiting})

    async def memory(self, request: Request) -> Response:
        """GET /v1/memory: what the memory guard knows and did."""
        pulse = await self._backend.health()
        if pulse.memory is None:
            raise Starting("waiting for the first memory report", 1.0)
        blocks = {
            "total": pulse.total_blocks,
            "allowed": pulse.memory.allowed_blocks,
            "used": pulse.used_blocks,
            "cached": pulse.cached_blocks,
            "free": max(0, pulse.memory.allowed_blocks - pulse.used_blocks - pulse.cached_blocks),
        }
        return as_json({"object": "memory", **msgspec.to_builtins(pulse.memory), "blocks": blocks})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics for Prometheus."""
        try:
            self._metrics.engine.pulse = await self._backend.health()
        except ServeError:
            self._metrics.engine.pulse = None  # tells `engine_up 0`
        self._metrics.engine.restarts = getattr(self._backend, "restarts", 0)
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})


class Counting:
    """Texts and requests in tokens, without generating any."""

    def __init__(self, chat: ChatHandler, answerer: ChatService, checkpoint: Checkpoint, window: Window) -> None:
        self._chat = chat
        self._answerer = answerer
        self._checkpoint = checkpoint
        self._window = window

    async def input_tokens(self, request: Request) -> Response:
        """POST /v1/chat/completions/input_tokens: the prompt's length, and each part's share, by the same code."""
        _, ask = await self._chat.read(request)
        shares = await self._answerer.count(ask)
        return as_json(
            {
                "object": "chat.completion.input_tokens",
                "input_tokens": sum(share.tokens for share in shares),
                "max_model_len": self._window.limit,
                "parts": [{"part": share.part, "tokens": share.tokens} for share in shares],
            }
        )

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: `prompt`, plain text in which nothing is a control token."""
        body = read_object(await read_body(request))
        text = body.get("prompt")
        if not isinstance(text, str):
            raise _wrong("prompt", "a string", text)
        mask = self._checkpoint.mask
        hidden = mask.hide(text)
        token_ids = await asyncio.to_thread(self._checkpoint.encoder.encode, hidden, mask)  # long texts take a while
        return as_json({"tokens": token_ids, "count": len(token_ids), "max_model_len": self._window.limit})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: `tokens` as text, control tokens shown."""
        body = read_object(await read_body(request))
        token_ids = body.get("tokens")
        if not isinstance(token_ids, list):
            raise _wrong("tokens", "an array of integers", token_ids)
        if len(token_ids) > MOST_TOKENS:
            text = f"Invalid 'tokens': array too long. Expected an array with maximum length {MOST_TOKENS}, but got an"
            raise bad(f"{text} array with length {len(token_ids)} instead.", "tokens", "array_above_max_length")
        end = 1 << 31
        for position, token_id in enumerate(token_ids):
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < end:
                raise _wrong(f"tokens[{position}]", "a token id", token_id)
        text = self._checkpoint.tokenizer.decode(token_ids, skip_special_tokens=False)
        return as_json({"prompt": text})


def _wrong(name: str, expected: str, value: Any) -> RequestRefused:
    if value is None:
        return bad(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    text = f"Invalid type for '{name}': expected {expected}, but got {kind_of(value)} instead."
    return bad(text, name, "invalid_type")
