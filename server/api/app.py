"""The routes, and which room answers each. Every reply that is no success is OpenAI's error object."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from server.api.chat.router import ChatHandler
from server.api.chat.to_request import RequestMapper
from server.api.errors import ApiError, RequestRefused, error_of, not_allowed, not_found
from server.api.info.router import Counting, Info, as_json
from server.api.metrics import Metrics
from server.api.middleware.auth import ApiKeys, AuthMiddleware, ErrorBoundary, respond
from server.api.middleware.rate_limit import RateLimiter, RateLimitMiddleware
from server.api.middleware.request_log import RequestLogMiddleware
from server.api.middleware.tracing import TracingMiddleware
from server.api.openapi.document import describe
from server.api.openapi.page import page
from server.api.sse import ClientGone, keep_streams_through_shutdown
from server.backends.base import Backend
from server.checkpoint.checkpoint import Checkpoint
from server.errors import ServeError
from server.prompt.builder import PromptBuilder
from server.service import build_service
from server.settings import ApiSettings, Settings

CLIENT_GONE = 499  # nobody reads it; logs do
Route = Callable[[Request], Awaitable[Response]]


def create_app(
    settings: Settings, checkpoint: Checkpoint, prompter: PromptBuilder, backend: Backend, name: str
) -> FastAPI:
    """The whole API over a backend that someone else starts and closes; until it is up, requests get a 503.

    `name` is what clients write in `model`. Raises CannotStart where the key file cannot be read.
    """
    keep_streams_through_shutdown()
    metrics = Metrics(checkpoint.dialect.name)
    answerer = build_service(checkpoint, prompter, backend)
    vocab_size, api = checkpoint.tokenizer.get_vocab_size(), settings.api
    asking = RequestMapper(checkpoint.defaults, vocab_size, api.strict, api.named_finish, api.must_answer)
    chat = ChatHandler(settings.api, name, asking, answerer, metrics)
    app = FastAPI(
        title="toolwire",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own spans would double ours, and tell the query string; older versions ignore this.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    info = Info(name, prompter.window, backend, metrics)
    _add_routes(app, chat, info, Counting(chat, answerer, checkpoint, prompter.window))
    _add_description(app)
    _add_fault_handlers(app, metrics)
    _add_middleware(app, settings.api)
    return app


def _add_routes(app: FastAPI, chat: ChatHandler, info: Info, counting: Counting) -> None:
    routes: tuple[tuple[str, str, Route], ...] = (
        ("POST", "/v1/chat/completions", chat.answer),
        ("POST", "/v1/chat/completions/input_tokens", counting.input_tokens),
        ("POST", "/tokenize", counting.tokenize),
        ("POST", "/detokenize", counting.detokenize),
        ("GET", "/v1/models", info.models),
        ("GET", "/v1/models/{id:path}", info.model),
        ("GET", "/v1/memory", info.memory),
        ("GET", "/", info.health),
        ("GET", "/health", info.health),
        ("GET", "/ready", info.ready),
        ("GET", "/metrics", info.metrics),
    )
    for method, path, route in routes:
        app.add_route(path, route, methods=[method])


def _add_description(app: FastAPI) -> None:
    document = describe()
    shown = page(document)

    async def openapi(_: Request) -> Response:
        return as_json(document)

    async def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(shown)

    app.add_route("/openapi.json", openapi, methods=["GET"])
    app.add_route("/docs", docs, methods=["GET"])


def _add_fault_handlers(app: FastAPI, metrics: Metrics) -> None:
    def tell(request: Request, fault: ApiError) -> Response:
        metrics.refused(request.url.path if fault.status not in (404, 405) else "other", fault.status)
        return respond(fault)

    async def serve_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServeError)
        return tell(request, error_of(error))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefused)
        return tell(request, error.fault)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        method, path = request.method, request.url.path
        known = {404: not_found(method, path), 405: not_allowed(method, path)}
        reply = tell(request, known.get(error.status_code, ApiError(error.status_code, str(error.detail))))
        reply.headers.update(error.headers or {})
        return reply

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ServeError, serve_error)
    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientGone, gone)
    app.add_exception_handler(ClientDisconnect, gone)


def _add_middleware(app: FastAPI, settings: ApiSettings) -> None:
    """The last one added is the first to see a request."""
    keys = ApiKeys(settings.api_key, settings.api_key_file)
    ledger = RateLimiter(settings.rate_limit_rpm, settings.max_concurrent_per_key)
    app.add_middleware(RateLimitMiddleware, ledger=ledger, by_key=keys.wanted)
    app.add_middleware(
        AuthMiddleware, keys=keys, max_body_bytes=settings.max_body_bytes, open_metrics=settings.open_metrics
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    app.add_middleware(RequestLogMiddleware)
    app.add_middleware(TracingMiddleware)
    app.add_middleware(ErrorBoundary)
