"""`/v1/models`: the model that is served here, and its adapters; in Anthropic's shape for its clients."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from server.api.errors import RequestRefused, json_response, no_such_model
from server.api.messages.errors import VERSION_HEADER
from server.api.messages.wire import AnthropicModel, AnthropicModelList
from server.api.openapi.operations import error_replies, json_reply
from server.api.served_models import ServedModels
from server.prompt.window import Window


class ModelCard(msgspec.Struct, tag_field="object", tag="model"):
    """A model that requests may name. Extensions: `max_model_len` limits the tokens of prompt and reply together;
    `notes` say what of the checkpoint is served otherwise than it is stored; `parent` is the model of an adapter.
    """

    id: str
    created: int
    owned_by: str
    max_model_len: int
    notes: Sequence[str] = ()
    parent: str | UnsetType = UNSET


# Codex sends what a model's entry has here in place of its own instructions, and takes no entry without it.
CODEX_INSTRUCTIONS = """\
You are a coding agent in a terminal. You and the user share one workspace.

- Read the files that matter before you change them; never guess what they hold.
- Run commands with the shell tool. Change files with apply_patch where it is offered: a patch names files by paths
  relative to the workspace, and repeats enough lines around a change to find its place.
- Keep changes small and in the style of what is there. Leave alone what the task does not ask for.
- Where tests or a program can show that a change works, run them.
- Go on until the task is done, or until only the user can answer a question. Then say in a few sentences what you did
  and what is left.
"""


class TruncationPolicy(msgspec.Struct, frozen=True):
    """How much of a tool's output Codex keeps."""

    mode: str = "tokens"
    limit: int = 10_000


class CodexModel(msgspec.Struct):
    """A model as Codex reads it, which offers its patch tool only where this says `freeform`."""

    slug: str
    display_name: str
    description: str
    context_window: int
    visibility: str = "list"
    supported_in_api: bool = True
    priority: int = 0
    truncation_policy: TruncationPolicy = TruncationPolicy()
    input_modalities: Sequence[str] = ("text",)
    base_instructions: str = CODEX_INSTRUCTIONS
    supports_parallel_tool_calls: bool = True
    supports_reasoning_summaries: bool = True
    supported_reasoning_levels: Sequence[Mapping[str, str]] = ()
    default_reasoning_level: str | None = None
    shell_type: str = "shell_command"
    apply_patch_tool_type: str = "freeform"
    support_verbosity: bool = False
    default_verbosity: None = None
    upgrade: None = None
    availability_nux: None = None
    experimental_supported_tools: Sequence[str] = ()
    web_search_tool_type: str = "text"
    tool_mode: None = None  # tools as they are offered, none behind a language of their own


class ModelList(msgspec.Struct, tag_field="object", tag="list"):
    """All models that requests may name. `models` is the same as Codex reads it (extension)."""

    data: list[ModelCard]
    models: list[CodexModel] = []


_EXAMPLE = ModelCard("toolwire-demo", 1790000000, "toolwire", 2048)


def adapter_card(models: ServedModels, name: str, max_model_len: int) -> ModelCard:
    """An adapter, with its parent."""
    return ModelCard(name, models.adapters[name], "toolwire", max_model_len, parent=models.name)


def models_router(models: ServedModels, window: Window, notes: Sequence[str]) -> APIRouter:
    """Routes that describe the models; the window may narrow until the engine is ready."""
    router = APIRouter()

    def described(name: str) -> ModelCard:
        if name in models.adapters:
            return adapter_card(models, name, window.limit)
        return ModelCard(models.name, models.created, "toolwire", window.limit, notes)

    def described_to_anthropic(name: str) -> AnthropicModel:
        card = described(name)
        at = datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")
        return AnthropicModel(card.id, card.id, at, window.limit, window.limit)

    @router.get(
        "/v1/models",
        operation_id="listModels",
        summary="List the models served here: one, and its adapters.",
        responses={200: json_reply(ModelList([_EXAMPLE])), **error_replies(401, 500)},
    )
    @router.head("/v1/models", include_in_schema=False)
    async def list_models(request: Request) -> Response:
        names = [models.name, *models.adapters]
        if VERSION_HEADER in request.headers:
            return json_response(AnthropicModelList([*map(described_to_anthropic, names)], names[0], names[-1]))
        codex = [CodexModel(name, name, "Served by toolwire.", window.limit) for name in names]
        return json_response(ModelList([*map(described, names)], codex))

    @router.get(
        "/v1/models/{id:path}",  # an id may hold slashes
        operation_id="retrieveModel",
        summary="Describe one model.",
        responses={200: json_reply(_EXAMPLE), **error_replies(401, 404, 500)},
    )
    @router.head("/v1/models/{id:path}", include_in_schema=False)
    async def retrieve_model(id: str, request: Request) -> Response:
        if not models.is_known(id):
            raise RequestRefused(no_such_model(id))
        if VERSION_HEADER in request.headers:
            return json_response(described_to_anthropic(id))
        return json_response(described(id))

    return router
