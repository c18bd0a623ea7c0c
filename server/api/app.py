"""FastAPI application: the routers of all surfaces, the error envelope, the middleware."""

from typing import Any, get_args

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from server.adapter_folder import parse_adapters
from server.api.chat.router import ChatHandler, chat_router
from server.api.chat.schemas import ChatCompletionRequest
from server.api.chat.to_request import RequestMapper
from server.api.chat.wire import ChatCompletion, ChatCompletionChunk
from server.api.completions.router import CompletionsHandler, completions_router
from server.api.completions.schemas import CompletionsRequest
from server.api.completions.to_request import CompletionsMapper
from server.api.completions.wire import Completion
from server.api.conversations.router import (
    ConversationBody,
    ConversationItemsBody,
    ConversationObject,
    ConversationsHandler,
    ConversationUpdateBody,
    DeletedConversation,
    conversations_router,
)
from server.api.errors import (
    ApiError,
    ErrorBody,
    RequestRefused,
    error_of,
    error_response,
    not_allowed,
    not_found,
)
from server.api.info.adapters import (
    AdapterHandler,
    LoadAdapterRequest,
    UnloadAdapterRequest,
    UnloadedAdapter,
    adapters_router,
)
from server.api.info.engines import EngineCards, EngineGauges, engines_router
from server.api.info.health import Health, NotReady, Readiness, health_router
from server.api.info.memory import Memory, memory_router
from server.api.info.models import ModelCard, ModelList, models_router
from server.api.info.tokens import (
    Detokenized,
    DetokenizeRequest,
    InputTokens,
    Tokenized,
    TokenizeRequest,
    tokens_router,
)
from server.api.messages.errors import envelope_of
from server.api.messages.router import MessagesHandler, messages_router
from server.api.messages.schemas import CountTokensRequest, MessagesRequest
from server.api.messages.to_request import MessagesMapper
from server.api.messages.wire import (
    AnthropicErrorBody,
    AnthropicModel,
    AnthropicModelList,
    MessageEvent,
    MessageReply,
    TokensCount,
)
from server.api.metrics import Metrics
from server.api.middleware.admission import Admission, AdmissionMiddleware
from server.api.middleware.auth import ApiKeys, AuthMiddleware, keys_of
from server.api.middleware.content_encoding import ContentEncodingMiddleware
from server.api.middleware.error_boundary import ErrorBoundary
from server.api.middleware.host_origin import HostOriginMiddleware
from server.api.middleware.rate_limit import RateLimiter, RateLimitMiddleware
from server.api.middleware.request_log import RequestLogMiddleware
from server.api.middleware.tracing import TracingMiddleware
from server.api.middleware.turns import TurnsMiddleware
from server.api.openapi.document import DocumentedApp
from server.api.openapi.page import render_page
from server.api.reply_handler import ReplyHandler
from server.api.responses.pages import ItemList
from server.api.responses.reader import RequestReader
from server.api.responses.router import Deleted, ResponseInputTokens, ResponsesHandler, responses_router
from server.api.responses.running.websocket import WebSocketHandler
from server.api.responses.schemas import ResponsesRequest
from server.api.responses.state import ResponsesState, state_of
from server.api.responses.to_request import ResponsesMapper
from server.api.responses.wire import CompactedResponse, ResponseObject
from server.api.sampling import SamplingMapper
from server.api.served_models import ServedModels
from server.api.sse import ClientGone
from server.api.web.router import web_router
from server.backends.base import Backend
from server.backends.routing import RoutingBackend
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import other_names
from server.errors import ServeError
from server.prompt.builder import PromptBuilder
from server.prompt.window import Window
from server.service import build_service
from server.settings import ApiSettings, Settings
from server.store.response_store import ResponseStore
from server.version import version

REQUESTS = (
    ChatCompletionRequest, ResponsesRequest, ConversationBody, ConversationItemsBody, ConversationUpdateBody,
    MessagesRequest, CountTokensRequest, CompletionsRequest,
    TokenizeRequest,
    DetokenizeRequest, LoadAdapterRequest, UnloadAdapterRequest,
)  # fmt: skip
REPLIES = (
    ChatCompletion, ChatCompletionChunk, ResponseObject, ErrorBody, InputTokens, Tokenized, Detokenized, ModelCard,
    ModelList, Memory, Deleted, ResponseInputTokens, CompactedResponse, ItemList, ConversationObject,
    DeletedConversation, EngineCards, Health, Readiness, NotReady,
    MessageReply, *get_args(MessageEvent), TokensCount, AnthropicErrorBody, AnthropicModel, AnthropicModelList,
    Completion, UnloadedAdapter,
)  # fmt: skip
OWN_ROUTES: dict[str, Any] = {
    "openapi_url": None,
    "docs_url": None,
    "redoc_url": None,
    "redirect_slashes": False,
    # FastAPI's own spans would double ours and record the query string; older versions ignore this.
    "telemetry": {"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
}
PAGE_HEADERS = {  # the page has no script and loads nothing
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
CLIENT_GONE = 499  # never sent, only logged and counted


def create_app(
    settings: Settings,
    checkpoint: Checkpoint,
    prompter: PromptBuilder,
    backend: Backend,
    name: str,
    keys: ApiKeys | None = None,
    state: ResponsesState | None = None,
) -> FastAPI:
    """The whole API over a backend that the caller starts and closes; until it is up, requests get a 503.

    `name` is what clients write in `model`, or else the folder or id as the operator wrote it; `keys` are those of the
    settings if left out, `state` None keeps nothing. Raises CannotStart where there is no key among them.
    """
    api, metrics, window = settings.api, Metrics(checkpoint.dialect.name), prompter.window
    service = build_service(checkpoint, prompter, backend)
    sampling = SamplingMapper(checkpoint.defaults, checkpoint.tokenizer.get_vocab_size())
    mapper = RequestMapper(sampling, api.strict, api.named_finish, api.must_answer, api.repair_history)
    models = served_models(settings, name)
    replies = ReplyHandler(api, models, service, metrics)
    chat = ChatHandler(replies, mapper)
    state = state or state_of(ResponseStore(None))
    app = DocumentedApp(
        routers=(
            chat_router(chat),
            *_routers_of_responses(replies, mapper, state, window, api),
            messages_router(MessagesHandler(replies, MessagesMapper(sampling, api.must_answer, api.repair_history))),
            completions_router(CompletionsHandler(replies, CompletionsMapper(checkpoint, sampling))),
            tokens_router(replies, chat, service, checkpoint, window),
            models_router(models, window, checkpoint.notes),
            adapters_router(replies, AdapterHandler(api, models, backend, window)),
            memory_router(backend),
            *_routers_of_engines(backend, metrics),
            health_router(backend, metrics, lambda: state.store.state),
            web_router(),
        ),
        requests=REQUESTS,
        replies=REPLIES,
        title="toolwire",
        version=version(),
        description="OpenAI-compatible chat with tools.",
        **OWN_ROUTES,
    )
    _add_document(app)
    _add_error_handlers(app)
    _add_middleware(app, api, metrics, keys or keys_of(api))
    return app


def served_models(settings: Settings, name: str) -> ServedModels:
    """The base model and the adapters of the settings. Raises CannotStart for adapters that cannot be served."""
    aliases = other_names(settings.model.model, settings.model.served_model_name)
    adapters = [source.name for source in parse_adapters(settings.engine.adapter, (name, *aliases))]
    return ServedModels(name, aliases, adapters, any_name=settings.api.allow_any_model)


def _routers_of_responses(
    replies: ReplyHandler, mapper: RequestMapper, state: ResponsesState, window: Window, api: ApiSettings
) -> list[APIRouter]:
    """Responses over HTTP and WebSocket, and their conversations."""
    reader = RequestReader(replies, ResponsesMapper(mapper, state.seal), state.store)
    return [
        responses_router(
            ResponsesHandler(replies, reader, state, window),
            WebSocketHandler(replies, reader, state.budget, api.max_websockets),
        ),
        conversations_router(ConversationsHandler(state, api.strict)),
    ]


def _routers_of_engines(backend: Backend, metrics: Metrics) -> list[APIRouter]:
    """The route and the metrics of engines elsewhere, where there are some."""
    if not isinstance(backend, RoutingBackend):
        return []
    metrics.registry.register(EngineGauges(backend))
    return [engines_router(backend)]


def _add_document(app: FastAPI) -> None:
    """Plain functions, which run in a thread."""
    app.add_route("/openapi.json", lambda _: JSONResponse(app.openapi()))
    app.add_route("/docs", lambda _: HTMLResponse(render_page(app.openapi()), headers=PAGE_HEADERS))


def _add_error_handlers(app: DocumentedApp) -> None:
    """Every reply that is no success is the error object of its surface, OpenAI's where that has none of its own."""

    async def serve_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServeError)
        return error_response(error_of(error), request.scope)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefused)
        return error_response(error.error, request.scope)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        method, path = request.method, request.url.path
        known = {404: not_found(method, path, app.served()), 405: not_allowed(method, path, app.served())}
        reply = error_response(
            known.get(error.status_code, ApiError(error.status_code, str(error.detail))), request.scope
        )
        reply.headers.update(error.headers or {})
        return reply

    async def client_gone(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ServeError, serve_error)
    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientGone, client_gone)
    app.add_exception_handler(ClientDisconnect, client_gone)


def _add_middleware(app: DocumentedApp, settings: ApiSettings, metrics: Metrics, keys: ApiKeys) -> None:
    """The last one added is the first to see a request."""
    limiter = RateLimiter(settings.rate_limit_rpm, settings.max_concurrent_per_key)
    pending = Admission(settings.max_pending_requests, max(settings.max_pending_bytes, settings.max_body_bytes))
    app.add_middleware(ContentEncodingMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(AdmissionMiddleware, admission=pending)
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    app.add_middleware(
        AuthMiddleware, keys=keys, max_body_bytes=settings.max_body_bytes, open_metrics=settings.open_metrics
    )
    app.add_middleware(
        HostOriginMiddleware,
        check_host=not keys.required,
        allowed_hosts=settings.allowed_hosts,
        cors_origins=settings.cors_origins,
    )
    app.add_middleware(ErrorBoundary)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    app.add_middleware(TracingMiddleware)

    def count(path: str, outcome: str) -> None:
        metrics.count_request(app.route_of(path), outcome)

    app.add_middleware(RequestLogMiddleware, count=count, envelope_of=envelope_of)
    app.add_middleware(TurnsMiddleware)
