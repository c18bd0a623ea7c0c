"""`/v1/memory`: the last report of the memory guard, and KV blocks by use."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.errors import json_response
from server.api.openapi.operations import error_replies, json_reply
from server.backends.base import Backend
from server.errors import Starting
from server.messages import MemoryReport


class BlockCounts(msgspec.Struct):
    """KV blocks. `allowed` is what memory permits of `total`; `free` is what is left of `allowed`."""

    total: int
    allowed: int
    used: int
    cached: int
    free: int


class Memory(MemoryReport, frozen=True, kw_only=True, tag_field="object", tag="memory"):
    """Report of the memory guard. Sizes in bytes, times in seconds since the epoch."""

    blocks: BlockCounts


_EXAMPLE = Memory(kv_bytes=62_914_560, blocks=BlockCounts(total=1024, allowed=1024, used=3, cached=40, free=981))


def memory_router(backend: Backend) -> APIRouter:
    """Route that shows the memory of the engine; 503 until its first report."""
    router = APIRouter()

    @router.get(
        "/v1/memory",
        operation_id="getMemory",
        summary="Report what the memory guard knows and did.",
        responses={200: json_reply(_EXAMPLE), **error_replies(401, 500, 503)},
    )
    @router.head("/v1/memory", include_in_schema=False)
    async def memory() -> Response:
        pulse = await backend.health()
        report = pulse.memory
        if report is None:
            raise Starting("waiting for the first memory report", 1.0)
        free = max(0, report.allowed_blocks - pulse.used_blocks - pulse.cached_blocks)
        blocks = BlockCounts(pulse.total_blocks, report.allowed_blocks, pulse.used_blocks, pulse.cached_blocks, free)
        return json_response(Memory(**msgspec.structs.asdict(report), blocks=blocks))

    return router
