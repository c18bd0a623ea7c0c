"""Routes that load and unload adapters while the server runs, by vLLM's names, behind a key of their own."""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad, read_body_object
from server.api.chat.fields import Part
from server.api.chat.validation_errors import validated
from server.api.errors import RequestRefused, json_response, no_such_model
from server.api.info.models import ModelCard, adapter_card
from server.api.middleware.auth import LOAD_PATH, UNLOAD_PATH
from server.api.openapi.operations import error_replies, json_body, json_reply
from server.api.reply_handler import ReplyHandler, read_body
from server.api.served_models import ServedModels
from server.backends.base import Backend
from server.backends.local import LocalBackend
from server.errors import BadRequest, CannotStart, Unsupported
from server.messages import LoadAdapter, UnloadAdapter
from server.prompt.window import Window
from server.service import until
from server.settings import ApiSettings

logger = logging.getLogger("toolwire.api")

STATUSES = (400, 401, 408, 413, 429, 500, 503, 504)


class LoadAdapterRequest(Part):
    """An adapter to load. `lora_path`: its folder in `--adapter-folder`, or that folder's own path."""

    lora_name: str
    lora_path: str


class UnloadAdapterRequest(Part):
    """An adapter to unload."""

    lora_name: str


class UnloadedAdapter(msgspec.Struct):
    """An adapter that no new request may name."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class AdapterHandler:
    """Changes the adapters of the engine, and then the names that requests may write."""

    def __init__(self, settings: ApiSettings, models: ServedModels, backend: Backend, window: Window) -> None:
        self._settings = settings
        self._models = models
        self._backend = backend
        self._window = window
        self._folder = check_adapter_folder(settings)
        self._changes: set[asyncio.Task[Response]] = set()

    async def load(self, raw: bytes) -> Response:
        """Load the adapter that a body names. Raises RequestRefused and the ServeErrors of the engine."""
        sent, _ = read_body_object(raw, self._settings.strict)
        request = validated(LoadAdapterRequest, sent)
        if fault := self._models.fault_of(request.lora_name):
            raise bad(f"Invalid 'lora_name': {fault}.", "lora_name")
        path = await asyncio.to_thread(self._path_of, request.lora_path)
        return await self._finish(self._load(request.lora_name, path))

    async def unload(self, raw: bytes) -> Response:
        """Unload the adapter that a body names; requests under way keep it. Raises as `load`."""
        sent, _ = read_body_object(raw, self._settings.strict)
        name = validated(UnloadAdapterRequest, sent).lora_name
        if name not in self._models.adapters:
            raise RequestRefused(no_such_model(name))
        return await self._finish(self._unload(name))

    async def _load(self, name: str, path: Path) -> Response:
        await self._local().change_adapter(LoadAdapter(name, str(path)))
        self._models.add(name)
        logger.info("adapter %s is loaded", name)
        return json_response(adapter_card(self._models, name, self._window.limit))

    async def _unload(self, name: str) -> Response:
        await self._local().change_adapter(UnloadAdapter(name))
        self._models.remove(name)
        logger.info("adapter %s is unloaded", name)
        return json_response(UnloadedAdapter(name))

    async def _finish(self, change: Coroutine[Any, Any, Response]) -> Response:
        """The outcome of a change, which is made to its end even if its client leaves."""
        task = asyncio.create_task(change, name="change of an adapter")
        self._changes.add(task)
        task.add_done_callback(self._end)
        return await asyncio.shield(task)

    def _end(self, task: asyncio.Task[Response]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # its client may have left
            logger.warning("an adapter is not changed: %s", error)

    def _local(self) -> LocalBackend:
        if not isinstance(self._backend, LocalBackend):
            raise Unsupported("adapters are loaded by a server with an engine of its own, not with engines elsewhere")
        return self._backend

    def _path_of(self, sent: str) -> Path:
        """The adapter's folder, inside of the one that is configured once links are followed. Raises BadRequest."""
        assert self._folder is not None, "there is no key without a folder"
        try:
            path = (self._folder / sent).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise BadRequest(f"'lora_path' is no path: {error}", param="lora_path") from error
        if path == self._folder or not path.is_relative_to(self._folder):
            raise BadRequest("'lora_path' must lie in the folder of --adapter-folder", param="lora_path")
        return path


def check_adapter_folder(settings: ApiSettings) -> Path | None:
    """The folder of adapters to load, links followed; None without a key. Raises CannotStart for half of the two."""
    if not settings.adapter_key and not settings.adapter_folder:
        return None
    if not settings.adapter_key or not settings.adapter_folder:
        raise CannotStart("--adapter-key and --adapter-folder need each other: who may load adapters, and from where")
    folder = Path(settings.adapter_folder).expanduser().resolve()
    if not folder.is_dir():
        raise CannotStart(f"--adapter-folder {settings.adapter_folder} is no folder")
    return folder


def adapters_router(replies: ReplyHandler, handler: AdapterHandler) -> APIRouter:
    """Routes that change the adapters."""
    router = APIRouter()

    @router.post(
        LOAD_PATH,
        operation_id="loadAdapter",
        summary="Load an adapter, under a name that requests may write in `model` from then on.",
        openapi_extra=json_body(LoadAdapterRequest, {"adapter": {"lora_name": "sql", "lora_path": "sql-lora"}}),
        responses={
            200: json_reply(ModelCard("sql", 1790000000, "toolwire", 2048, parent="toolwire-demo")),
            **error_replies(*STATUSES),
        },
    )
    async def load_adapter(request: Request) -> Response:
        async with until(replies.deadline(request)):
            return await handler.load(await read_body(request))

    @router.post(
        UNLOAD_PATH,
        operation_id="unloadAdapter",
        summary="Take an adapter away from new requests.",
        openapi_extra=json_body(UnloadAdapterRequest, {"adapter": {"lora_name": "sql"}}),
        responses={200: json_reply(UnloadedAdapter("sql")), **error_replies(*STATUSES, 404)},
    )
    async def unload_adapter(request: Request) -> Response:
        async with until(replies.deadline(request)):
            return await handler.unload(await read_body(request))

    return router
