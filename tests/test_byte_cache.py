"""The cache with a limit in bytes, and the caches of schemas and grammars that use it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from server.byte_cache import ENTRY_BYTES, ByteCache
from server.dialects.base import Tool
from server.dialects.schema import cache
from server.dialects.schema.compiled import supported
from server.dialects.schema.validate import ToolSet


def test_values_used_least_recently_are_dropped_at_the_limit() -> None:
    """A limit in entries lets a client fill memory with large ones."""
    kept: ByteCache[int, bytes] = ByteCache(3 * (100 + ENTRY_BYTES), lambda _, value: len(value))
    made: list[int] = []

    def get(key: int) -> bytes:
        def make() -> bytes:
            made.append(key)
            return bytes(100)

        return kept.get(key, make)

    for key in (1, 2, 3, 1, 4, 1, 3, 2):
        get(key)
    assert made == [1, 2, 3, 4, 2]
    assert kept.num_bytes == 3 * (100 + ENTRY_BYTES)


def test_a_value_beyond_the_limit_is_returned_and_not_kept() -> None:
    kept: ByteCache[int, bytes] = ByteCache(1000, lambda _, value: len(value))
    assert kept.get(1, lambda: bytes(5000)) == bytes(5000)
    assert kept.num_bytes == 0


def test_threads_that_miss_together_count_an_entry_once() -> None:
    kept: ByteCache[int, bytes] = ByteCache(1 << 20, lambda _, value: len(value))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: kept.get(i % 50, lambda: bytes(100)), range(5000)))
    assert kept.num_bytes == 50 * (100 + ENTRY_BYTES)


def test_large_distinct_schemas_stay_within_the_limit() -> None:
    """Counted by entries, a thousand tools of this size would be kept: 2 GB of validators."""
    process = psutil.Process()

    def use(number: int) -> None:
        fields = {f"f{number}_{i}": {"type": "string", "enum": [f"v{i}_{j}" for j in range(40)]} for i in range(250)}
        schema: Any = {"type": "object", "properties": fields}
        tool = Tool("f", schema)
        assert ToolSet([tool]).validate(tool, json.dumps({f"f{number}_0": "v0_1"})) == ()
        assert supported(schema, False, "tools[0]")

    for number in range(12):
        use(number)
    before = process.memory_info().rss
    for number in range(12, 90):
        use(number)
        assert cache.num_bytes() <= cache.MAX_BYTES
    assert cache.num_bytes() > cache.MAX_BYTES / 2
    assert process.memory_info().rss - before < 1.25 * cache.MAX_BYTES
