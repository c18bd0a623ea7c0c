"""Limits of requests before the engine: how many, how many bytes of bodies, and for how long."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from server.checkpoint.checkpoint import Checkpoint
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import Script
from tests.checkpoints import tiny_checkpoint

Reply = Callable[..., Script]
SLOW = "take your time"
# Renders a message that says so slowly, as a large conversation or a template with many loops would be.
TEMPLATE = """
{%- if messages[-1].content is string and messages[-1].content.startswith("take your time") -%}
{%- for _ in range(8000) %}{% for _ in range(4000) %}{% endfor %}{% endfor -%}
{%- endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor -%}
{%- if tools %}<tool_call>{"name": "x", "arguments": {}}</tool_call>{{ tools | tojson }}{% endif -%}
{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path: Path = tmp_path_factory.mktemp("template") / "slow.jinja"
    path.write_text(TEMPLATE)
    return Checkpoint.open(tiny_checkpoint("qwen3"), chat_template=str(path), dialect="hermes")


def body(text: str) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


async def test_the_deadline_holds_while_a_prompt_is_prepared(serve: Serve, reply: Reply) -> None:
    """Preparation stood outside the deadline: 504 came when the prompt was ready, and later still behind others."""
    async with serve(reply("Hi")) as served:
        patient = asyncio.ensure_future(served.chat(messages=body(SLOW)["messages"]))
        await asyncio.sleep(0.05)
        soon = {"x-request-timeout": "0.1"}
        hasty = [served.http.post("/v1/chat/completions", json=body(SLOW), headers=soon) for _ in range(4)]
        answers = await asyncio.gather(*hasty)
        assert not patient.done(), "its prompt, the first, is not ready yet"
        assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(504, "request_timeout")] * 4
        assert (await patient).status_code == 200


async def test_requests_beyond_the_places_are_refused_at_once_and_places_become_free(
    serve: Serve, reply: Reply
) -> None:
    """Two threads with an endless queue stood before the engine, whose own limit counted none of what waited there."""
    async with serve(reply("Hi"), max_pending_requests=3) as served:
        waiting = [asyncio.ensure_future(served.chat(messages=body(SLOW)["messages"])) for _ in range(3)]
        await asyncio.sleep(0.05)
        refused = await served.chat()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "--max-pending-requests" in refused.json()["error"]["message"]
        left = waiting.pop()  # its request waits for a thread
        left.cancel()
        await asyncio.wait({left})
        assert not any(one.done() for one in waiting)
        assert (await served.chat()).status_code == 200
        assert [(await one).status_code for one in waiting] == [200, 200]


async def test_the_bytes_of_waiting_bodies_are_bounded(serve: Serve, reply: Reply) -> None:
    """Declared, chunked or compressed, what bodies become in memory counts, not what was sent of them."""
    limits = {"max_body_bytes": 4096, "max_pending_bytes": 4096}
    async with serve(reply("Hi"), **limits) as served:
        waiting = asyncio.ensure_future(served.chat(messages=body(SLOW + 2500 * " ")["messages"]))
        await asyncio.sleep(0.05)
        large = body("a" * 2000)
        declared = await served.http.post("/v1/chat/completions", json=large)

        async def pieces() -> AsyncIterator[bytes]:
            for piece in (b"a" * 1000, b"a" * 1000):
                yield piece

        chunked = await served.http.post("/v1/chat/completions", content=pieces())
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        squeezed = gzip.compress(json.dumps(large).encode())
        decoded = await served.http.post("/v1/chat/completions", content=squeezed, headers=headers)
        for refused in (declared, chunked, decoded):
            assert refused.status_code == 429 and "--max-pending-bytes" in refused.text
        assert (await served.chat()).status_code == 200
        assert (await waiting).status_code == 200
        assert (await served.http.post("/v1/chat/completions", json=large)).status_code == 200


async def test_a_reply_that_is_written_takes_no_place(serve: Serve, reply: Reply) -> None:
    async with serve([*reply("Hi")[:1], 0.5, *reply("Hi")[1:]], max_pending_requests=1) as served:
        answers: list[httpx.Response] = await asyncio.gather(*(later(0.05 * i, served.chat()) for i in range(4)))
    assert [one.status_code for one in answers] == [200] * 4


async def later(delay_s: float, work: Awaitable[httpx.Response]) -> httpx.Response:
    await asyncio.sleep(delay_s)
    return await work
