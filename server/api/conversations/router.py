"""Routes of conversations and their items."""

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, BeforeValidator, Field
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad, read_body_object
from server.api.chat.fields import Part
from server.api.chat.schemas import read_metadata
from server.api.chat.to_reply import new_id
from server.api.chat.validation_errors import validated
from server.api.chat.wire import Notes, noted
from server.api.errors import json_response
from server.api.openapi.operations import error_replies, json_body, json_reply
from server.api.reply_handler import read_body
from server.api.responses.items import InputItem, read_items
from server.api.responses.memory import ClientMemory, as_kept, no_store, no_such, to_kept_items
from server.api.responses.pages import EXAMPLE_ITEM, ITEM_SCHEMA, ItemList, page_of
from server.api.responses.state import ResponsesState
from server.notes import Note
from server.store.database import KeptConversation
from server.store.response_store import StoreFailed

PATH = "/v1/conversations"
MOST_NEW_ITEMS = 100


def _as_sent(value: Any) -> Any:
    """Items are read apart from the body, as those of a request for a response are."""
    return value


ShownItems = Annotated[list[InputItem], Field(max_length=MOST_NEW_ITEMS)]
NewItems = Annotated[
    list[Any], Field(max_length=MOST_NEW_ITEMS), BeforeValidator(_as_sent, json_schema_input_type=ShownItems)
]
ConversationMetadata = Annotated[dict[str, str], Field(max_length=16), AfterValidator(read_metadata)]


class ConversationItemsBody(Part):
    """Body of POST /v1/conversations/{id}/items."""

    items: NewItems = Field(default_factory=list, description="Messages, calls, results of calls, thoughts.")


class ConversationUpdateBody(Part):
    """Body of POST /v1/conversations/{id}: metadata in the place of what there was."""

    metadata: ConversationMetadata | None = None


class ConversationBody(ConversationItemsBody, ConversationUpdateBody):
    """Body of POST /v1/conversations."""


class ConversationObject(msgspec.Struct, tag_field="object", tag="conversation"):
    """A conversation, without its items."""

    id: str
    created_at: int
    metadata: dict[str, str]
    toolwire: Notes | UnsetType = UNSET


class DeletedConversation(msgspec.Struct, tag_field="object", tag="conversation.deleted"):
    """A conversation that is kept no more."""

    id: str
    deleted: bool = True


class ConversationsHandler:
    """Answers requests about conversations. Every method raises RequestRefused."""

    def __init__(self, state: ResponsesState, strict: bool) -> None:
        self._state = state
        self._strict = strict

    async def create(self, request: Request) -> Response:
        """POST /v1/conversations."""
        (body, notes), memory = await self._read(request), self._memory(request.state)
        items = _checked(body.items, self._strict)
        kept = KeptConversation(f"conv_{new_id()}", time.time(), msgspec.json.encode(body.metadata or {}))
        await self._run(memory, memory.database.put_conversation, memory.owner, kept, as_kept(items))
        self._written(items)
        return json_response(_object_of(kept, notes))

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/conversations/{id}."""
        return json_response(_object_of(await self._conversation(request)))

    async def update(self, request: Request) -> Response:
        """POST /v1/conversations/{id}: new metadata."""
        (body, notes), memory = await self._read(request), self._memory(request.state)
        conversation_id, metadata = request.path_params["id"], msgspec.json.encode(body.metadata or {})
        if not await self._run(memory, memory.database.set_metadata, memory.owner, conversation_id, metadata):
            raise no_such("Conversation", conversation_id)
        return json_response(_object_of(await self._conversation(request), notes))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/conversations/{id}."""
        memory, conversation_id = self._memory(request.state), request.path_params["id"]
        if not await self._run(memory, memory.database.delete_conversation, memory.owner, conversation_id):
            raise no_such("Conversation", conversation_id)
        return json_response(DeletedConversation(conversation_id))

    async def add_items(self, request: Request) -> Response:
        """POST /v1/conversations/{id}/items."""
        (body, notes), memory = await self._read(request), self._memory(request.state)
        items, conversation_id = _checked(body.items, self._strict), request.path_params["id"]
        if not await self._run(memory, memory.database.add_items, memory.owner, conversation_id, as_kept(items)):
            raise no_such("Conversation", conversation_id)
        self._written(items)
        page = page_of([_shown(item) for item in items], {"order": "asc", "limit": str(MOST_NEW_ITEMS)})
        page.toolwire = noted(notes)
        return json_response(page)

    async def list_items(self, request: Request) -> Response:
        """GET /v1/conversations/{id}/items."""
        return json_response(page_of(await self._items(request), request.query_params))

    async def retrieve_item(self, request: Request) -> Response:
        """GET /v1/conversations/{id}/items/{item_id}."""
        item_id = request.path_params["item_id"]
        for item in await self._items(request):
            if item["id"] == item_id:
                return Response(msgspec.json.encode(item), media_type="application/json")
        raise no_such("Item", item_id)

    async def delete_item(self, request: Request) -> Response:
        """DELETE /v1/conversations/{id}/items/{item_id}; answers with the conversation."""
        memory, item_id = self._memory(request.state), request.path_params["item_id"]
        conversation_id = request.path_params["id"]
        if not await self._run(memory, memory.database.delete_item, memory.owner, conversation_id, item_id):
            raise no_such("Item", item_id)
        return await self.retrieve(request)

    async def _read(self, request: Request) -> tuple[ConversationBody, tuple[Note, ...]]:
        """The body, and notes on what of it is read as something else; an empty one is an empty object."""
        raw = await read_body(request)
        body, notes = read_body_object(raw if raw.strip() else b"{}", self._strict)
        return validated(ConversationBody, body), notes

    def _memory(self, state: State) -> ClientMemory:
        return ClientMemory(self._state.store, state)

    async def _conversation(self, request: Request) -> KeptConversation:
        memory, conversation_id = self._memory(request.state), request.path_params["id"]
        kept: KeptConversation | None = await self._run(
            memory, memory.database.conversation, memory.owner, conversation_id
        )
        if kept is None:
            raise no_such("Conversation", conversation_id)
        return kept

    async def _items(self, request: Request) -> list[dict[str, Any]]:
        items = await self._memory(request.state).conversation_items(request.path_params["id"])
        return [_shown(json.loads(item.body)) for item in items]

    def _written(self, items: Sequence[dict[str, Any]]) -> None:
        self._state.store.written(len(msgspec.json.encode(items)))

    async def _run(self, memory: ClientMemory, work: Any, *args: Any) -> Any:
        try:
            return await memory.store.run(work, *args)
        except StoreFailed as error:
            raise no_store(error) from error


def conversations_router(handler: ConversationsHandler) -> APIRouter:
    """Routes of conversations."""
    router = APIRouter()
    one, item = f"{PATH}/{{id}}", f"{PATH}/{{id}}/items/{{item_id}}"
    conversation, page = json_reply(_CONVERSATION), json_reply(_PAGE)
    any_item = {"description": "The item.", "content": {"application/json": {"schema": ITEM_SCHEMA}}}
    bodies = {
        handler.create: json_body(ConversationBody, {"a question": {"items": [_QUESTION], "metadata": {"topic": "a"}}}),
        handler.update: json_body(ConversationUpdateBody, {"a topic": {"metadata": {"topic": "b"}}}),
        handler.add_items: json_body(ConversationItemsBody, {"a question": {"items": [_QUESTION]}}),
    }
    for path, method, endpoint, operation, summary, reply in (
        (PATH, "POST", handler.create, "createConversation", "Begin a conversation.", conversation),
        (one, "GET", handler.retrieve, "getConversation", "A conversation.", conversation),
        (one, "POST", handler.update, "updateConversation", "Replace its metadata.", conversation),
        (one, "DELETE", handler.delete, "deleteConversation", "Delete it.", json_reply(DeletedConversation("conv_1"))),
        (f"{one}/items", "POST", handler.add_items, "createConversationItems", "Add items.", page),
        (f"{one}/items", "GET", handler.list_items, "listConversationItems", "Its items.", page),
        (item, "GET", handler.retrieve_item, "getConversationItem", "One item.", any_item),
        (item, "DELETE", handler.delete_item, "deleteConversationItem", "Delete an item.", conversation),
    ):
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            operation_id=operation,
            summary=summary,
            openapi_extra=_parameters(path) | bodies.get(endpoint, {}),
            responses={200: reply, **error_replies(400, 401, 404, 500, 503)},
        )
    return router


def _parameters(path: str) -> dict[str, Any]:
    names = [name for name in ("id", "item_id") if f"{{{name}}}" in path]
    schema = {"type": "string"}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]}


def _checked(items: list[Any], strict: bool) -> list[dict[str, Any]]:
    """The items as they are kept, once each is known to be readable. References name nothing here."""
    for place, item in enumerate(read_items(items, "items", strict)):
        if getattr(item, "type", "") == "item_reference":
            raise bad(f"Invalid 'items[{place}]': references cannot be added.", f"items[{place}]", "invalid_value")
    return to_kept_items(items)


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """An item as conversations show it: OpenAI's types of custom calls there have no status."""
    has_none = item["type"] in ("custom_tool_call", "custom_tool_call_output")
    return {key: value for key, value in item.items() if key != "status"} if has_none else item


def _object_of(kept: KeptConversation, notes: Sequence[Note] = ()) -> ConversationObject:
    return ConversationObject(kept.id, int(kept.created_s), json.loads(kept.metadata), noted(notes))


_CONVERSATION = ConversationObject("conv_5yGqkD0w3XtZbN1cVfRmLpHs", 1790000000, {})
_QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
_PAGE = ItemList([EXAMPLE_ITEM], EXAMPLE_ITEM["id"], EXAMPLE_ITEM["id"], False)
