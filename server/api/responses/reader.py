"""Requests for responses, read and validated with what they continue, whichever way they come."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.datastructures import State

from server.api.body import bad, read_body_object
from server.api.reply_handler import ReplyHandler
from server.api.responses.items import read_items
from server.api.responses.memory import ClientMemory, Context, Item, to_kept_items
from server.api.responses.plan import ResponsePlan
from server.api.responses.schemas import ResponsesRequest, read_responses_request
from server.api.responses.to_request import ResponsesMapper
from server.notes import Note
from server.store.response_store import ResponseStore

PATH = "/v1/responses"


class ReadBody(msgspec.Struct):
    """A body as it was parsed, with what was put right."""

    fields: dict[str, Any]
    notes: tuple[Note, ...]


class LocalContext(msgspec.Struct):
    """The last response of a connection, which can be continued there although it is not kept."""

    id: str
    items: list[Item]


class RequestReader:
    """Reads requests for responses. Its methods raise RequestRefused or a ServeError."""

    def __init__(self, replies: ReplyHandler, mapper: ResponsesMapper, store: ResponseStore) -> None:
        self._replies = replies
        self._mapper = mapper
        self._store = store

    async def read(self, state: State, raw: bytes) -> ResponsePlan:
        """The validated request of a body with what it continues."""
        return await self.plan(state, await self._replies.parse(self.parse, raw), raw)

    async def plan(
        self,
        state: State,
        body: ReadBody,
        raw: bytes,
        local: LocalContext | None = None,
        generates: bool = True,
    ) -> ResponsePlan:
        """The same for a body that is parsed already. `local` is what else can be continued."""
        sent, notes = await self._replies.parse(partial(self._validate, body), raw)
        memory = self.memory(state)
        if local is not None and sent.previous_response_id == local.id:
            context = await memory.context_behind(local.items, sent.input)
        else:
            context = await memory.context(sent)
        is_kept = sent.keeps and (self._store.state != "none" or sent.store is True)
        map_it = partial(self._plan, sent, notes, memory, context, is_kept, is_kept or local is not None)
        plan = await self._replies.parse(map_it, raw)
        if not generates:
            plan.compute_prompt_only()
        return plan

    def parse(self, raw: bytes) -> ReadBody:
        """The body as an object."""
        return ReadBody(*read_body_object(raw, self._replies.settings.strict))

    def memory(self, state: State) -> ClientMemory:
        """What the client of a request has kept."""
        return ClientMemory(self._store, state)

    def _validate(self, read: ReadBody, _: bytes) -> tuple[ResponsesRequest, tuple[Note, ...]]:
        strict, prompt = self._replies.settings.strict, ("input", "tools")
        return self._replies.validated(read.fields, read.notes, read_responses_request, prompt, strict)

    def _plan(
        self,
        sent: ResponsesRequest,
        notes: Sequence[Note],
        memory: ClientMemory,
        context: Context,
        is_kept: bool,
        needs_items: bool,
        _: bytes,
    ) -> ResponsePlan:
        if sent.background and self._store.database is None:
            text = "Background mode needs kept responses, and this server keeps none (--response-store)."
            raise bad(text, "background", "invalid_parameter_combination")
        if sent.conversation is not None and not is_kept:
            notes = (*notes, Note("not_kept", "conversation", "without 'store' the conversation gets no items."))
        own = read_items(context.own, strict=self._replies.settings.strict)
        mapped = self._mapper.map(sent, read_items(context.kept), own, notes)
        items = to_kept_items(context.own) if needs_items else []
        keep = partial(memory.keep, items) if is_kept and not sent.background else None
        return ResponsePlan(mapped, bool(sent.stream), keep, items, context.kept)
