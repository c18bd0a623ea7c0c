"""`/v1/models`: the one model that is served here."""

import time

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.errors import RequestRefused, json_response, no_such_model
from server.api.openapi.operations import error_replies, json_reply
from server.prompt.window import Window

EXAMPLE = {
    "id": "toolwire-demo",
    "object": "model",
    "created": 1790000000,
    "owned_by": "toolwire",
    "max_model_len": 2048,
}


class Model(msgspec.Struct, tag_field="object", tag="model"):
    """A model that requests may name. `max_model_len` limits the tokens of prompt and reply together (extension)."""

    id: str
    created: int
    owned_by: str
    max_model_len: int


class ModelList(msgspec.Struct, tag_field="object", tag="list"):
    """All models that requests may name."""

    data: list[Model]


def models_router(name: str, window: Window) -> APIRouter:
    """Routes that describe the model `name`; its window may narrow until the engine is ready."""
    router = APIRouter()
    created = int(time.time())

    def described() -> Model:
        return Model(name, created, "toolwire", window.limit)

    @router.get(
        "/v1/models",
        operation_id="listModels",
        summary="List the models served here: one.",
        responses={200: json_reply(ModelList, {"object": "list", "data": [EXAMPLE]}), **error_replies(401, 500)},
    )
    @router.head("/v1/models", include_in_schema=False)
    async def list_models() -> Response:
        return json_response(ModelList([described()]))

    @router.get(
        "/v1/models/{id:path}",  # an id may hold slashes
        operation_id="retrieveModel",
        summary="Describe one model.",
        responses={200: json_reply(Model, EXAMPLE), **error_replies(401, 404, 500)},
    )
    @router.head("/v1/models/{id:path}", include_in_schema=False)
    async def retrieve_model(id: str) -> Response:
        if id != name:
            raise RequestRefused(no_such_model(id))
        return json_response(described())

    return router
