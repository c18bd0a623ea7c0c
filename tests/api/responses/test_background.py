"""Background responses through the real routes: polled, streamed again, cancelled, bounded, ended whatever happens."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.api.responses.running import background
from server.api.responses.state import ResponsesState, state_of
from server.errors import ConstraintFailed, EngineDied, QueueFull
from server.settings import ApiSettings
from server.store import response_store
from tests.api.conftest import CALL, MODEL, Serve, Served
from tests.api.responses.conftest import HeldScript
from tests.api.responses.strict_types import ENDS, check_response, without
from tests.api.responses.test_router import TOOL, Reply, checked_events, create, events_of
from tests.store.full_disk import set_page_limit

TEXT = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}"
IDS = ("id", "call_id")


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Return when `check` is true, soon."""
    async with asyncio.timeout(20):
        while not await check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ended(served: Served, response_id: str) -> dict[str, Any]:
    """The response, polled until it has ended."""
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        nonlocal found
        found = (await served.http.get(f"/v1/responses/{response_id}")).json()
        check_response(found)
        return found["status"] not in ("queued", "in_progress")

    await until(has_ended)
    return found


async def resumed(served: Served, response_id: str, after: int | None = None) -> httpx.Response:
    params = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    return await served.http.get(f"/v1/responses/{response_id}", params=params)


async def test_it_is_queued_at_once_and_polled_until_it_is_complete(
    serve: Serve, reply: Reply, state: ResponsesState
) -> None:
    script = HeldScript(reply(TEXT), 9)
    async with serve(script.pieces, state=state) as served:
        begun = (await create(served, background=True, tools=[TOOL])).json()
        check_response(begun)
        assert begun["status"] == "queued" and begun["background"] and begun["output"] == []
        path = f"/v1/responses/{begun['id']}"

        async def is_in_progress() -> bool:
            now = (await served.http.get(path)).json()
            return now["status"] == "in_progress" and [item["type"] for item in now["output"]] == ["reasoning"]

        await until(is_in_progress)
        assert len((await served.http.get(f"{path}/input_items")).json()["data"]) == 1
        early = await create(served, previous_response_id=begun["id"])
        assert early.status_code == 400 and early.json()["error"]["code"] == "previous_response_in_progress"
        script.release()
        done = await ended(served, begun["id"])
        at_once = (await create(served, tools=[TOOL])).json()
        assert done["status"] == "completed" and not state.runs
        assert without(done["output"], *IDS) == without(at_once["output"], *IDS) and done["usage"] == at_once["usage"]
        result = {"type": "function_call_output", "call_id": done["output"][-1]["call_id"], "output": "21"}
        more = await create(served, input=[result], previous_response_id=begun["id"], tools=[TOOL])
        assert more.status_code == 200
        figures = (await served.http.get("/metrics")).text
        assert 'toolwire_background_responses_total{status="completed"} 1.0' in figures


async def test_a_stream_is_resumed_at_every_event_while_it_runs_and_when_it_is_done(
    serve: Serve, reply: Reply, state: ResponsesState
) -> None:
    script = HeldScript(reply(TEXT), 20)
    async with serve(script.pieces, state=state) as served:
        streaming = asyncio.create_task(create(served, background=True, stream=True, tools=[TOOL]))
        await until(lambda: _has_run(state))
        ((_, response_id),) = state.runs._runs
        early = [asyncio.create_task(resumed(served, response_id, after)) for after in (None, 0, 3, 7)]
        await asyncio.sleep(0.05)
        script.release()
        whole = await streaming
        events = checked_events(whole)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        kinds = [event["type"] for event in events]
        assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"] and kinds[-1] in ENDS
        assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
        frames = [f"{frame}\n\n" for frame in whole.text.split("\n\n")[:-1]]
        for after, task in zip((-1, 0, 3, 7), early, strict=True):
            assert (await task).text == "".join(frames[after + 1 :])
        await ended(served, response_id)
        for after in range(len(frames) + 2):  # beyond the end there is nothing, and it ends at once
            assert (await resumed(served, response_id, after)).text == "".join(frames[after + 1 :])
        assert (await resumed(served, response_id)).text == whole.text
        kept = (await served.http.get(f"/v1/responses/{response_id}")).json()
        assert kept == events[-1]["response"]


async def _has_run(state: ResponsesState) -> bool:
    return any(run.log.num_events > 8 for run in state.runs._runs.values())


async def test_a_client_that_leaves_its_stream_ends_nothing(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    script = HeldScript(reply("Hello there"), 2)
    async with serve(script.pieces, state=state) as served:
        streaming = asyncio.create_task(create(served, background=True, stream=True))
        await until(lambda: _is_running(served))
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        ((_, response_id),) = state.runs._runs
        script.release()
        assert (await ended(served, response_id))["status"] == "completed"
        assert served.backend.aborted == []


async def _is_running(served: Served) -> bool:
    return bool(served.backend.running)


async def test_a_response_is_cancelled_once_and_for_all(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(HeldScript(reply(TEXT), 9).pieces, state=state) as served:
        begun = (await create(served, background=True, tools=[TOOL])).json()
        await until(lambda: _is_running(served))
        streaming = asyncio.create_task(resumed(served, begun["id"]))
        await asyncio.sleep(0.05)
        first = await served.http.post(f"/v1/responses/{begun['id']}/cancel")
        check_response(first.json())
        assert first.json()["status"] == "cancelled" and len(served.backend.aborted) == 1
        last = checked_events(await streaming)[-1]
        assert last["type"] == "response.incomplete" and last["response"] == first.json()
        for method, tail in (("POST", "/cancel"), ("GET", "")):
            again = await served.http.request(method, f"/v1/responses/{begun['id']}{tail}")
            assert again.status_code == 200 and again.json() == first.json()
    async with serve(reply("Hello"), state=state) as served:
        done = await ended(served, (await create(served, background=True)).json()["id"])
        assert (await served.http.post(f"/v1/responses/{done['id']}/cancel")).json() == done


async def test_a_deleted_response_is_written_no_more(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    """Its end wrote the row again."""
    async with serve(HeldScript(reply("Hello"), 1).pieces, state=state) as served:
        begun = (await create(served, background=True)).json()
        await until(lambda: _is_running(served))
        assert (await served.http.delete(f"/v1/responses/{begun['id']}")).status_code == 200
        await until(lambda: _is_idle(state))
        for params in ({}, {"stream": "true"}):
            assert (await served.http.get(f"/v1/responses/{begun['id']}", params=params)).status_code == 404
        assert len(served.backend.aborted) == 1


async def _is_idle(state: ResponsesState) -> bool:
    return not state.runs._tasks


@pytest.mark.parametrize(
    ("fields", "script", "code"),
    [
        ({}, lambda reply: [*reply("Hello there")[:2], EngineDied("the engine died")], "server_error"),
        ({}, lambda _: [QueueFull("9 requests wait")], "rate_limit_exceeded"),
        ({"input": "word " * 40_000}, lambda reply: reply("Hello"), "context_length_exceeded"),
        ({}, lambda _: [ConstraintFailed("no such grammar")], "invalid_prompt"),
        ({}, lambda _: [object()], "server_error"),
    ],
    ids=["dies", "refused", "too long", "no grammar", "unhandled"],
)
async def test_whatever_ends_it_is_its_error(
    serve: Serve,
    reply: Reply,
    state: ResponsesState,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    script: Callable[[Reply], Any],
    code: str,
) -> None:
    """An exception in its task left a response `in_progress` for ever."""
    async with serve(script(reply), state=state) as served:
        begun = (
            await served.http.post("/v1/responses", json={"model": MODEL, "input": "Hi", "background": True, **fields})
        ).json()
        found: dict[str, Any] = {}

        async def has_failed() -> bool:
            found.update((await served.http.get(f"/v1/responses/{begun['id']}")).json())
            return found["status"] == "failed"

        await until(has_failed)
        assert found["error"]["code"] == code and found["error"]["message"]
        assert code != "rate_limit_exceeded" or "try again in 1s" in found["error"]["message"]
        last = checked_events(await resumed(served, begun["id"]))[-1]
        assert last["type"] == "response.failed" and last["response"] == found
    assert ("unhandled" in caplog.text) == (script(reply)[0].__class__ is object)


async def test_a_deadline_ends_it(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(HeldScript(reply("Hello"), 1).pieces, state=state, request_timeout_s=0.2) as served:
        found = await ended(served, (await create(served, background=True)).json()["id"])
    assert found["status"] == "failed" and "deadline" in found["error"]["message"]


async def test_what_cannot_be_kept_is_refused(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello")) as served:
        for fields in ({"store": False}, {}):
            answer = await create(served, background=True, **fields)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "background"


async def test_their_number_and_the_clients_own_limit_hold(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    few = state_of(state.store, settings=replace(ApiSettings(), max_background=1))
    script = HeldScript(reply("Hello"), 1)
    async with serve(script.pieces, state=few) as served:
        first = (await create(served, background=True)).json()
        second = await create(served, background=True)
        assert second.status_code == 429 and "--max-background" in second.json()["error"]["message"]
        script.release()
        await ended(served, first["id"])
        await until(lambda: _is_idle(few))
        assert (await create(served, background=True)).status_code == 200
        await few.runs.drained(5)
    script = HeldScript(reply("Hello"), 1)
    async with serve(script.pieces, state=state, max_concurrent_per_key=1) as served:
        first = (await create(served, background=True)).json()
        assert (await create(served)).status_code == 429  # it runs although its request is answered
        script.release()
        await ended(served, first["id"])
        await until(lambda: _is_idle(state))
        assert (await create(served)).status_code == 200


async def test_their_bytes_are_bounded(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    small = state_of(state.store, settings=replace(ApiSettings(), max_held_bytes=4000))
    async with serve(reply("word " * 200), state=small) as served:
        refused = await create(served, background=True, input="x" * 4001)
        assert refused.status_code == 429 and background.OPTION in refused.json()["error"]["message"]
        found = await ended(served, (await create(served, background=True)).json()["id"])
        assert found["status"] == "failed" and background.OPTION in found["error"]["message"]
        await small.runs.drained(5)
        await asyncio.sleep(0)
        assert small.budget.num_bytes == 0 and not small.runs


async def test_one_key_never_reaches_anothers(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    script = HeldScript(reply("Hello"), 1)
    async with serve(script.pieces, state=state, api_key="one,two") as served:
        mine, yours = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"model": MODEL, "input": "Hi", "background": True}
        begun = (await served.http.post("/v1/responses", json=body, headers=mine)).json()
        path = f"/v1/responses/{begun['id']}"
        for method, tail in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")):
            assert (await served.http.request(method, path + tail, headers=yours)).status_code == 404
        assert (await served.http.get(path, headers=mine)).json()["status"] in ("queued", "in_progress")
        script.release()
        await state.runs.drained(5)


async def test_a_server_that_is_gone_leaves_no_response_in_progress(
    serve: Serve, reply: Reply, state: ResponsesState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of a server that was killed ends, and its response has failed; a server that lives goes on."""
    monkeypatch.setattr(background, "LEASE_S", 0.4)
    monkeypatch.setattr(background, "RENEW_S", 0.05)
    other = state_of(state.store)  # another server on the same database
    async with serve(HeldScript(reply("Hello"), 1).pieces, state=state) as served, serve(state=other) as second:
        begun = (await create(served, background=True)).json()
        path = f"/v1/responses/{begun['id']}"
        await asyncio.sleep(0.6)
        assert (await second.http.get(path)).json()["status"] == "queued"  # renewed
        for task in (*state.runs._tasks, state.runs._renewing):
            assert task is not None
            task.cancel()  # as if killed: nothing is written
        await asyncio.sleep(0.6)
        found = (await second.http.get(path)).json()
        check_response(found)
        assert found["status"] == "failed" and found["error"]["code"] == "server_error"
        (event,) = checked_events(await resumed(second, begun["id"], 4))
        assert event["type"] == "response.failed" and event["sequence_number"] == 5
        assert (await second.http.post(f"{path}/cancel")).json() == found


async def test_a_response_of_another_server_is_cancelled_and_streamed(
    serve: Serve, reply: Reply, state: ResponsesState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "RENEW_S", 0.05)
    other = state_of(state.store)
    script = HeldScript(reply("Hello"), 1)
    async with serve(script.pieces, state=state) as served, serve(state=other) as second:
        begun = (await create(served, background=True)).json()
        await until(lambda: _is_running(served))
        cancelled = (await second.http.post(f"/v1/responses/{begun['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        await until(lambda: _is_idle(state))
        assert len(served.backend.aborted) == 1
        assert (await served.http.get(f"/v1/responses/{begun['id']}")).json() == cancelled
        begun = (await create(served, background=True)).json()
        streaming = asyncio.create_task(resumed(second, begun["id"], 0))
        script.release()
        await ended(served, begun["id"])
        assert checked_events(await streaming)[-1]["response"]["status"] == "completed"


async def test_the_first_end_is_the_end_on_every_server(
    serve: Serve, reply: Reply, state: ResponsesState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that another server had cancelled was still shown as completed by the server that wrote it."""
    monkeypatch.setattr(background, "RENEW_S", 60)  # it learns of the other end by its own only
    script = HeldScript(reply("Hello there"), 1)
    async with serve(script.pieces, state=state) as served, serve(state=state_of(state.store)) as second:
        begun = (await create(served, background=True)).json()
        await until(lambda: _is_running(served))
        streaming = asyncio.create_task(resumed(served, begun["id"]))
        cancelled = (await second.http.post(f"/v1/responses/{begun['id']}/cancel")).json()
        script.release()
        last = checked_events(await streaming)[-1]
        assert last["type"] == "response.incomplete" and last["response"] == cancelled
        await until(lambda: _is_idle(state))
        figures = (await served.http.get("/metrics")).text
        assert 'toolwire_background_responses_total{status="cancelled"} 1.0' in figures


async def test_an_end_that_can_never_be_kept_is_logged(
    serve: Serve, reply: Reply, state: ResponsesState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was given up without a word."""
    monkeypatch.setattr(background, "RETRY_S", 0.01)
    monkeypatch.setattr(background, "KEEP_TRIES", 2)
    script = HeldScript(reply("word " * 4000), 1)
    database = state.store.database
    assert database is not None
    async with serve(script.pieces, state=state) as served:
        await create(served, background=True)
        with database._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.commit()
        script.release()
        await until(lambda: _is_idle(state))
    assert caplog.text.count("the end of a background response could not be kept") == 1


async def test_an_end_that_cannot_be_kept_is_kept_later(
    serve: Serve, reply: Reply, state: ResponsesState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that fails at the end costs nothing: the response is read from memory until it is kept."""
    monkeypatch.setattr(background, "RETRY_S", 0.05)
    monkeypatch.setattr(response_store, "RETRY_S", 0.01)
    script = HeldScript(reply("word " * 4000), 1)
    database = state.store.database
    assert database is not None
    async with serve(script.pieces, state=state) as served:
        begun = (await create(served, background=True)).json()
        set_page_limit(database, 1)
        script.release()
        found = await ended(served, begun["id"])
        assert found["status"] == "incomplete" and found["toolwire"]["notes"][0]["kind"] == "not_kept"
        set_page_limit(database, 1073741823)
        await until(lambda: _is_idle(state))
        kept = (await served.http.get(f"/v1/responses/{begun['id']}")).json()
        assert kept["status"] == "incomplete" and "toolwire" not in kept and kept["output"] == found["output"]


@pytest.mark.parametrize(
    ("query", "param"),
    [("stream=yes", "stream"), ("stream=true&starting_after=-1", "starting_after"),
     ("stream=true&starting_after=x", "starting_after"), ("starting_after=1", "starting_after")],
)  # fmt: skip
async def test_queries_out_of_range(serve: Serve, reply: Reply, state: ResponsesState, query: str, param: str) -> None:
    async with serve(reply("Hello"), state=state) as served:
        done = await ended(served, (await create(served, background=True)).json()["id"])
        answer = await served.http.get(f"/v1/responses/{done['id']}?{query}")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
        huge = await served.http.get(f"/v1/responses/{done['id']}?stream=true&starting_after={'9' * 5000}")
        assert huge.status_code == 200 and huge.text == ""
        whole = (await create(served)).json()
        answer = await served.http.get(f"/v1/responses/{whole['id']}?stream=true")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "stream"


async def test_a_conversation_gets_the_items_once(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply("Hello"), state=state) as served:
        conversation = (await served.http.post("/v1/conversations", json={})).json()
        begun = (await create(served, background=True, conversation=conversation["id"])).json()
        await ended(served, begun["id"])
        page = (await served.http.get(f"/v1/conversations/{conversation['id']}/items")).json()
        assert [item["role"] for item in page["data"]] == ["assistant", "user"]


async def test_foreground_streams_have_the_same_events(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply(TEXT), state=state) as served:
        now = events_of(await create(served, stream=True, tools=[TOOL]))
        begun = (await create(served, background=True, tools=[TOOL])).json()
        await ended(served, begun["id"])
        later = checked_events(await resumed(served, begun["id"]))
    kinds = [event["type"] for event in later]
    assert [kind for kind in kinds if kind != "response.queued"] == [event["type"] for event in now]
    assert json.dumps(later).count('"delta"') == json.dumps(now).count('"delta"') > 5
    assert later[-1]["response"]["created_at"] <= later[-1]["response"]["completed_at"] <= time.time()
