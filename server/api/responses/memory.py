"""Kept responses and conversations of one client: what a request continues, and how its response is kept."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import State

from server.api.body import bad
from server.api.chat.content import plain_parts
from server.api.chat.to_reply import new_id
from server.api.errors import ApiError, RequestRefused, encode
from server.api.middleware.auth import CLIENT
from server.api.responses.items import in_responses_form, kind_of_item, result_parts
from server.api.responses.schemas import ResponsesRequest
from server.api.responses.to_reply import response_of_item
from server.api.responses.wire import ResponseObject
from server.store.database import Database, KeptItem, KeptResponse
from server.store.response_store import ResponseStore, StoreFailed

RETRY_AFTER_S = 5
UNENDED = ("queued", "in_progress")
GONE = "The server that wrote this response ended before the response was complete; send the request again."
Item = dict[str, Any]
T = TypeVar("T")
_ID_PREFIXES = {
    "message": "msg", "function_call": "fc", "function_call_output": "fco", "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco", "reasoning": "rs", "compaction": "cmp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Context:
    """Items that a request continues, and its own with references resolved."""

    kept: Sequence[Item]
    own: Any


class ClientMemory:
    """What one client, by the digest of its key, has kept. Raises RequestRefused (503) while the database fails."""

    def __init__(self, store: ResponseStore, state: State) -> None:
        self.store = store
        self.owner: str = getattr(state, CLIENT, "")

    @property
    def database(self) -> Database:
        """The database. Raises RequestRefused where there is none."""
        if self.store.database is None:
            raise no_store(StoreFailed("this server keeps no responses (--response-store)"))
        return self.store.database

    async def context(self, sent: ResponsesRequest) -> Context:
        """What a request continues. Raises RequestRefused for what is not kept, or another client's."""
        kept: list[Item] = []
        if sent.previous_response_id is not None:
            kept = await self._before(sent.previous_response_id)
        elif sent.conversation is not None:
            kept = [json.loads(item.body) for item in await self.conversation_items(sent.conversation)]
        return await self.context_behind(kept, sent.input)

    async def context_behind(self, kept: list[Item], sent: Any) -> Context:
        """The same where what a request continues is known. Raises RequestRefused."""
        return Context(kept, await self._resolved(sent, kept) if isinstance(sent, list) else sent)

    async def keep(self, sent_items: Sequence[Item], response: ResponseObject) -> str:
        """Keep a response and the items of its request; returns why that failed, or ""."""
        if self.store.database is None:
            return "this server keeps no responses (--response-store)"
        kept, items = _kept_of(sent_items, response), _conversation_items(sent_items, response)
        try:
            await self.store.run(self.store.database.put_response, self.owner, kept, items)
        except StoreFailed as error:
            return str(error)
        self.store.written(_num_bytes(kept, items))
        return ""

    async def begin(self, sent_items: Sequence[Item], response: ResponseObject, lease_s: float) -> None:
        """Keep a background response that has not begun, held until `lease_s`. Raises RequestRefused (503)."""
        kept = replace(_kept_of(sent_items, response), lease_s=lease_s)
        try:
            await self.store.run(self.database.put_response, self.owner, kept)
        except StoreFailed as error:
            raise no_store(error) from error

    async def end(self, sent_items: Sequence[Item], response: ResponseObject, events: bytes) -> ResponseObject:
        """Keep the end of a background response. Raises StoreFailed.

        Returns the response as it ended, which may be elsewhere and otherwise; one that is deleted as it is.
        """
        database = self.store.database
        assert database is not None, "it has begun in a database"
        kept, items = _kept_of(sent_items, response), _conversation_items(sent_items, response)
        if await self.store.run(database.end_response, self.owner, kept, items, events):
            self.store.written(_num_bytes(kept, items))
            return response
        found = await self.store.run(database.response, self.owner, kept.id)
        return response if found is None else msgspec.json.decode(found.body, type=ResponseObject)

    async def response(self, response_id: str) -> KeptResponse:
        """A kept response; a background response whose server is gone has failed. Raises RequestRefused (404)."""
        if self.store.database is None:
            raise no_such("Response", response_id)
        now_s = time.time()
        found = await self._found(response_id)
        if found.lease_s is not None and found.lease_s < now_s:
            return await self._end(found, "failed", now_s)
        return found

    async def cancel_response(self, kept: KeptResponse) -> KeptResponse:
        """End a background response that another server writes, which notices it soon. Raises RequestRefused."""
        return await self._end(kept, "cancelled")

    async def events(self, response_id: str) -> bytes:
        """The events of an ended background response; empty for one whose server was gone. Raises RequestRefused."""
        events = await self._run(self.database.events, response_id)
        if events is None:
            raise no_such("Response", response_id)
        return events

    async def _found(self, response_id: str) -> KeptResponse:
        found = await self._run(self.database.response, response_id)
        if found is None:
            raise no_such("Response", response_id)
        return found

    async def _end(self, kept: KeptResponse, status: str, now_s: float = 0.0) -> KeptResponse:
        """The response as it ended, which may be elsewhere and otherwise."""
        error = {"code": "server_error", "message": GONE} if status == "failed" else None
        body = msgspec.json.encode({**json.loads(kept.body), "status": status, "error": error})
        ended = replace(kept, body=body)
        try:
            await self.store.run(self.database.end_response, self.owner, ended, now_s=now_s)
        except StoreFailed as fault:
            raise no_store(fault) from fault
        return await self._found(kept.id)

    async def delete_response(self, response_id: str) -> None:
        """Raises RequestRefused (404)."""
        if not await self._run(self.database.delete_response, response_id):
            raise no_such("Response", response_id)

    async def conversation_items(self, conversation_id: str) -> list[KeptItem]:
        """The items of a conversation. Raises RequestRefused (404)."""
        items = await self._run(self.database.items, conversation_id)
        if items is None:
            raise no_such("Conversation", conversation_id)
        return items

    async def _before(self, response_id: str) -> list[Item]:
        """All items up to the end of a response."""
        database = self.store.database
        chain = None if database is None else await self._run(database.chain, response_id)
        if chain is None:
            is_kept = database is not None and await self._run(database.response, response_id) is not None
            why = "one that it continues is deleted or expired" if is_kept else "it is unknown, expired, or not stored"
            text = f"Previous response with id '{response_id}' not found: {why}."
            raise bad(text, "previous_response_id", "previous_response_not_found")
        if json.loads(chain[-1].body)["status"] in UNENDED:
            chain[-1] = await self.response(response_id)
            if chain[-1].lease_s is not None:
                text = f"Previous response with id '{response_id}' has not ended yet; wait for it, or cancel it."
                raise bad(text, "previous_response_id", "previous_response_in_progress")
        turns = [item for kept in chain for item in (*json.loads(kept.input), *output_items(json.loads(kept.body)))]
        return [*await self._before_in_conversation(chain[0]), *turns]

    async def _before_in_conversation(self, kept: KeptResponse) -> list[Item]:
        """The items before a response's own in the conversation that it belongs to. Raises RequestRefused (400)."""
        body = json.loads(kept.body)
        if body["conversation"] is None:
            return []
        listed = await self._run(self.database.items, body["conversation"]["id"]) or ()
        items = [json.loads(item.body) for item in listed]
        sent, written = ({item["id"] for item in own} for own in (json.loads(kept.input), body["output"]))
        place = next((at for at, item in enumerate(items) if item["id"] in (written or sent)), None)
        if place is None:
            text = f"Previous response with id '{kept.id}' cannot be continued: its conversation has lost it."
            raise bad(text, "previous_response_id", "previous_response_not_found")
        while place > 0 and items[place - 1]["id"] in sent:
            place -= 1
        return items[:place]

    async def _run(self, work: Callable[[str, str], T], id_: str) -> T:
        """What the database has of this client by this id. Raises RequestRefused (503)."""
        try:
            return await self.store.run(work, self.owner, id_)
        except StoreFailed as error:
            raise no_store(error) from error

    async def _resolved(self, items: Sequence[Any], kept: Sequence[Item]) -> list[Any]:
        """The items, those that stand for kept ones replaced; references that name nothing stay, to be refused."""
        named = {item["id"] for item in items if _stands_for_kept(item)}
        if not named:
            return list(items)
        known = {item["id"]: item for item in kept if item.get("id") in named}
        missing = [one for one in named if one not in known]
        if missing and self.store.database is not None:
            try:
                ids = {response_of_item(one) for one in missing}
                found = await self.store.run(self.store.database.responses, self.owner, list(ids))
            except StoreFailed as error:
                raise no_store(error) from error
            for response in found:
                known |= {item["id"]: item for item in json.loads(response.body)["output"]}
        return [known.get(item["id"], item) if _stands_for_kept(item) else item for item in items]


def _stands_for_kept(item: Any) -> bool:
    """Whether an item is a reference, or a thought of which the client carries the id alone."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return False
    carried = ("content", "summary", "encrypted_content")
    kind = kind_of_item(item)
    return kind == "item_reference" or (kind == "reasoning" and not any(item.get(key) for key in carried))


def _kept_of(sent_items: Sequence[Item], response: ResponseObject) -> KeptResponse:
    conversation_id = response.conversation.id if response.conversation is not None else None
    sent = msgspec.json.encode(sent_items)
    return KeptResponse(response.id, encode(response), sent, response.previous_response_id, conversation_id)


def _num_bytes(kept: KeptResponse, items: Sequence[KeptItem]) -> int:
    return len(kept.body) + len(kept.input) + sum(len(item.body) for item in items)


def _conversation_items(sent_items: Sequence[Item], response: ResponseObject) -> list[KeptItem]:
    if response.conversation is None:
        return []
    return as_kept([*sent_items, *output_items(msgspec.to_builtins(response))])


def output_items(response: Mapping[str, Any]) -> list[Item]:
    """The output of a response that has ended, to be continued: a custom call that a limit cut off says so.

    OpenAI's type of the item has no field for it, and without one the call would need a result.
    """
    items: list[Item] = list(response["output"])
    if response["status"] == "incomplete" and items and items[-1]["type"] == "custom_tool_call":
        items[-1] = {**items[-1], "status": "incomplete"}
    return items


def to_kept_items(sent: Any) -> list[Item]:
    """A validated input as items with ids, in the form in which they are listed."""
    if sent is None:
        return []
    if isinstance(sent, str):
        sent = [{"type": "message", "role": "user", "content": sent}]
    return [_to_kept_item(one) for item in sent for one in in_responses_form(item)]


def as_kept(items: Sequence[Item]) -> list[KeptItem]:
    """Items as they are kept in a conversation."""
    return [KeptItem(item["id"], msgspec.json.encode(item)) for item in items]


def _to_kept_item(sent: Mapping[str, Any]) -> Item:
    item = {key: value for key, value in sent.items() if value is not None}
    kind = item["type"] = kind_of_item(item)
    if not (isinstance(item.get("id"), str) and item["id"]):
        item["id"] = f"{_ID_PREFIXES.get(kind, 'item')}_{new_id()}"
    if kind == "message":
        text_kind = "output_text" if item["role"] == "assistant" else "input_text"
        content = item.get("content", [])
        parts = [{"type": text_kind, "text": content}] if isinstance(content, str) else plain_parts(content, True)
        item["content"] = [_to_kept_part(part, text_kind) for part in parts]
    elif kind == "function_call" and not isinstance(item.get("arguments"), str):
        item["arguments"] = json.dumps(item.get("arguments") or {})
    elif kind in ("function_call_output", "custom_tool_call_output"):
        item["output"] = result_parts(item.get("output"))
    elif kind == "reasoning":
        item.setdefault("summary", [])
    if kind in _ID_PREFIXES and kind not in ("reasoning", "compaction"):
        item.setdefault("status", "completed")
    return item


def _to_kept_part(part: Mapping[str, Any], text_kind: str) -> Item:
    if part["type"] == "refusal":
        return dict(part)
    if part["type"] == "thinking":
        return {"type": "reasoning_text", "text": part["thinking"]}
    if text_kind == "output_text":
        return {"type": text_kind, "text": part["text"], "annotations": [], "logprobs": []}
    return {"type": text_kind, "text": part["text"]}


def no_such(kind: str, id_: str) -> RequestRefused:
    """A 404 for what is not kept, or is another client's."""
    return RequestRefused(ApiError(404, f"{kind} with id '{id_}' not found.", code="not_found"))


def no_store(error: StoreFailed) -> RequestRefused:
    """A 503 while the database fails."""
    text = f"Kept responses cannot be read: {error}"
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return RequestRefused(ApiError(503, text, "server_error", code="response_store_unavailable", headers=headers))
