"""Kept responses and conversations through the real routes, on a real database."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.conversations import Conversation, ConversationItemList
from openai.types.responses import ResponseItemList

from server.api.responses.state import ResponsesState, state_of
from server.store.database import DAY_S, Database
from server.store.response_store import ResponseStore
from tests.api.conftest import CALL, Serve, Served
from tests.api.responses.strict_types import check_no_extra, check_response
from tests.api.responses.test_router import PATCH, PATCH_CALL, TOOL, Reply, create, events_of
from tests.store.full_disk import set_page_limit
from tests.store.postgres import is_installed, running_postgres

CUSTOM = {"type": "custom_tool_call", "call_id": "c0", "name": "patch", "input": "one word"}
CUSTOM_OUTPUT = {"type": "custom_tool_call_output", "call_id": "c0", "output": "done"}
THOUGHTFUL = "<think>\nhm\n</think>\n\n"


def prompts(served: Served) -> list[str]:
    return [served.text_of(request.token_ids) for request in served.backend.asked]


async def test_a_kept_response_is_read_listed_and_deleted(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply(f"{THOUGHTFUL}Hello"), state=state) as served:
        whole = (await create(served, input=[{"role": "user", "content": "Hi"}], metadata={"a": "b"})).json()
        path = f"/v1/responses/{whole['id']}"
        assert (await served.http.get(path)).json() == whole
        page = (await served.http.get(f"{path}/input_items")).json()
        check_no_extra(ResponseItemList.model_validate(page), "page")
        assert page["data"][0]["content"] == [{"type": "input_text", "text": "Hi"}]
        assert (await served.http.post(f"{path}/cancel")).status_code == 400
        assert (await served.http.delete(path)).json() == {"id": whole["id"], "object": "response", "deleted": True}
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
            assert (await served.http.request(method, path + tail)).status_code == 404


async def test_a_turn_continues_what_is_kept(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    """Instructions are not kept; a reference names an item of an earlier response."""
    async with serve(reply(f"{THOUGHTFUL}Look.\n{CALL}"), state=state) as served:
        first = (await create(served, instructions="Be brief.", tools=[TOOL])).json()
        thought, message, call = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "21"}
        second = await create(served, input=[result], previous_response_id=first["id"], tools=[TOOL], stream=True)
        assert events_of(second)[-1]["response"]["previous_response_id"] == first["id"]
        asks = {"role": "user", "content": "Hi"}
        await create(served, input=[asks, thought, message, call, result], tools=[TOOL])
        by_id = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        await create(served, input=[asks, *by_id, result], tools=[TOOL])
        bare = {"type": "reasoning", "id": thought["id"], "summary": []}  # clients that read summaries alone send this
        await create(served, input=[asks, bare, message, call, result], tools=[TOOL])
        assert len(set(prompts(served)[1:])) == 1
        assert "Be brief." in prompts(served)[0] and "Be brief." not in prompts(served)[1]


async def test_what_is_not_kept_cannot_be_continued(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply("Hello"), state=state) as served:
        loose = (await create(served, store=False)).json()
        assert (await served.http.get(f"/v1/responses/{loose['id']}")).status_code == 404
        for unknown in (loose["id"], "resp_none"):
            answer = await create(served, previous_response_id=unknown)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "previous_response_not_found"


async def test_one_key_never_reads_anothers(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply("Hello"), state=state, api_key="one,two") as served:
        mine, yours = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        body: dict[str, Any] = {"model": "org/tiny", "input": "Hi"}
        post, get = served.http.post, served.http.get
        kept = (await post("/v1/responses", json=body, headers=mine)).json()
        path = f"/v1/responses/{kept['id']}"
        assert (await get(path, headers=mine)).status_code == 200
        assert (await get(path, headers=yours)).status_code == 404
        assert (await served.http.delete(path, headers=yours)).status_code == 404
        more = {**body, "previous_response_id": kept["id"]}
        assert (await post("/v1/responses", json=more, headers=yours)).status_code == 400
        conversation = (await post("/v1/conversations", json={}, headers=mine)).json()
        assert (await get(f"/v1/conversations/{conversation['id']}", headers=yours)).status_code == 404
        more = {**body, "conversation": conversation["id"]}
        assert (await post("/v1/responses", json=more, headers=yours)).status_code == 404


async def test_a_conversation_gathers_its_items(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply("Hello"), state=state) as served:
        items = [{"type": "message", "role": "user", "content": "My name is Ann."}]
        begun = (await served.http.post("/v1/conversations", json={"items": items, "metadata": {"a": "b"}})).json()
        check_no_extra(Conversation.model_validate(begun), "conversation")
        path = f"/v1/conversations/{begun['id']}"
        whole = (await create(served, conversation=begun["id"])).json()
        check_response(whole)
        await create(served, conversation={"id": begun["id"]}, input="And you?")
        assert all(part in prompts(served)[1] for part in ("My name is Ann.", "Hi", "Hello", "And you?"))
        page = (await served.http.get(f"{path}/items", params={"order": "asc", "limit": 2})).json()
        check_no_extra(ConversationItemList.model_validate(page), "page")
        assert page["has_more"] and [item["role"] for item in page["data"]] == ["user", "user"]
        rest = (await served.http.get(f"{path}/items", params={"order": "asc", "after": page["last_id"]})).json()
        assert [item["role"] for item in rest["data"]] == ["assistant", "user", "assistant"]
        one = f"{path}/items/{page['first_id']}"
        assert (await served.http.get(one)).json() == page["data"][0]
        assert (await served.http.delete(one)).json() == begun and (await served.http.get(one)).status_code == 404
        assert (await served.http.post(path, json={"metadata": {"c": "d"}})).json()["metadata"] == {"c": "d"}
        added = (await served.http.post(f"{path}/items", json={"items": items})).json()
        assert len(added["data"]) == 1
        assert (await served.http.delete(path)).json()["deleted"] and (await served.http.get(path)).status_code == 404
        assert (await create(served, conversation=begun["id"])).status_code == 404


async def test_a_response_of_a_conversation_is_continued_with_what_came_before(
    serve: Serve, reply: Reply, state: ResponsesState
) -> None:
    """`previous_response_id` of such a response left out the conversation before it, without a word."""
    async with serve(reply("Hello"), state=state) as served:
        begun = (await served.http.post("/v1/conversations", json={"items": []})).json()["id"]
        turns = [await create(served, conversation=begun, input=text) for text in ("One", "Two", "Three")]
        first, second, _ = (turn.json() for turn in turns)
        loose = (await create(served, conversation=begun, input="Loose", store=False)).json()
        assert [(note["kind"], note["param"]) for note in loose["toolwire"]["notes"]] == [("not_kept", "conversation")]
        beside = await create(served, previous_response_id=second["id"], input="Beside")
        await create(served, previous_response_id=beside.json()["id"], input="Behind")
        for prompt, behind in zip(prompts(served)[-2:], ([], ["Behind"]), strict=True):
            said = [text for text in ("One", "Two", "Three", "Loose", "Beside", "Behind") if text in prompt]
            assert said == ["One", "Two", "Beside", *behind]
        assert (await served.http.delete(f"/v1/conversations/{begun}")).status_code == 200
        answer = await create(served, previous_response_id=first["id"])
        assert answer.status_code == 400 and "its conversation has lost it" in answer.json()["error"]["message"]


async def test_items_of_conversations_are_bounded_in_bytes(serve: Serve, reply: Reply, tmp_path: Path) -> None:
    """They were counted, and nothing looked at the count before a response was kept."""
    database = Database(f"sqlite:///{tmp_path / 'kept.sqlite'}", DAY_S, 50_000)
    state = state_of(ResponseStore(database, 50_000))
    async with serve(reply("Hello"), state=state) as served:
        items = [{"role": "user", "content": "x" * 30_000}]
        first, second = [(await served.http.post("/v1/conversations", json={})).json()["id"] for _ in range(2)]
        for conversation in (first, second):
            path = f"/v1/conversations/{conversation}/items"
            assert (await served.http.post(path, json={"items": items})).status_code == 200
            assert state.store._tidying is not None
            await state.store._tidying
        found = [(await served.http.get(f"/v1/conversations/{one}")).status_code for one in (first, second)]
    assert found == [404, 200]
    database.close()


async def test_messages_of_chat_completions_are_kept_as_the_items_that_they_are(
    serve: Serve, reply: Reply, state: ResponsesState
) -> None:
    """A message without content was a 500 where it was kept, which is the default; a result was kept as a message."""
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    sent = [
        {"role": "user", "content": None, "id": ""},
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "21"},
    ]
    async with serve(reply("Hello"), state=state) as served:
        whole = (await create(served, input=sent, store=False)).json()
        kept = (await create(served, input=sent)).json()
        page = (await served.http.get(f"/v1/responses/{kept['id']}/input_items", params={"order": "asc"})).json()
        check_no_extra(ResponseItemList.model_validate(page), "page")
        assert [item["type"] for item in page["data"]] == [
            "message",
            "message",
            "function_call",
            "function_call_output",
        ]
        assert all(item["id"] for item in page["data"])
        begun = (await served.http.post("/v1/conversations", json={"items": sent})).json()["id"]
        await create(served, conversation=begun, input=[{"role": "user", "content": "Hi"}])
        await create(served, input=[*sent, {"role": "user", "content": "Hi"}])
        assert whole["status"] == "completed" and prompts(served)[0] == prompts(served)[1]
        assert prompts(served)[2] == prompts(served)[3]


async def test_a_custom_call_that_a_limit_cut_off_does_not_end_the_conversation(
    serve: Serve, reply: Reply, state: ResponsesState
) -> None:
    """It had no status, so that every later turn was refused for want of its result, in a conversation for ever."""
    cut = PATCH_CALL[: PATCH_CALL.index(" words")]
    async with serve(reply(f"Look.\n{cut}", "length"), state=state) as served:
        begun = (await served.http.post("/v1/conversations", json={"items": [CUSTOM, CUSTOM_OUTPUT]})).json()["id"]
        turn: dict[str, Any] = {"tools": [PATCH], "max_output_tokens": 50}
        first = (await create(served, **turn)).json()
        assert [item["type"] for item in first["output"]] == ["message", "custom_tool_call"]
        check_response(first)
        await create(served, conversation=begun, **turn)
        items = [{"role": "user", "content": "Hi"}, first["output"][0], {"role": "user", "content": "And?"}]
        await create(served, input=items, tools=[PATCH])
        await create(served, previous_response_id=first["id"], input="And?", tools=[PATCH])
        later = await create(served, conversation=begun, input="And?", tools=[PATCH])
        assert prompts(served)[3] == prompts(served)[2] and later.status_code == 200
        page = (await served.http.get(f"/v1/conversations/{begun}/items", params={"order": "asc"})).json()
    check_no_extra(ConversationItemList.model_validate(page), "page")
    assert [item["type"] for item in page["data"]][:2] == ["custom_tool_call", "custom_tool_call_output"]


async def test_a_turn_behind_a_deleted_one_says_so(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    """It said of a kept response that it was not found."""
    async with serve(reply("Hello"), state=state) as served:
        first = (await create(served)).json()["id"]
        second = (await create(served, previous_response_id=first)).json()["id"]
        await served.http.delete(f"/v1/responses/{first}")
        error = (await create(served, previous_response_id=second)).json()["error"]
        assert error["code"] == "previous_response_not_found" and "continues is deleted or expired" in error["message"]


async def test_a_store_that_fails_costs_the_memory_alone(
    serve: Serve,
    reply: Reply,
    state: ResponsesState,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full disk: the response is answered and says that it is not kept, and `/ready` says it too."""
    database = state.store.database
    assert database is not None
    set_page_limit(database, 1)
    async with serve(reply("Hello"), state=state) as served:
        assert (await served.http.get("/ready")).json()["response_store"] == "ok"
        large = {f"key {i}": "x" * 512 for i in range(16)}
        whole = (await create(served, instructions="word " * 3400, metadata=large)).json()
        note = whole["toolwire"]["notes"][0]
        assert whole["status"] == "completed" and note["kind"] == "not_kept"
        assert "sqlite" not in note["text"] and "full" in caplog.text  # the driver's words are the operator's
        assert (await served.http.get("/ready")).json()["response_store"] == "failing"
        last = events_of(await create(served, stream=True))[-1]["response"]  # at once: it is not tried again
        assert last["toolwire"]["notes"][0]["kind"] == "not_kept"
        answer = await create(served, previous_response_id=whole["id"])
        assert answer.status_code == 503 and answer.headers["retry-after"]
        monkeypatch.setattr(state.store, "_retry_at_s", 0.0)
        assert "toolwire" not in (await create(served)).json()
        assert (await served.http.get("/ready")).json()["response_store"] == "ok"


async def test_a_database_that_is_gone_holds_nothing_up(serve: Serve, reply: Reply) -> None:
    if not is_installed():
        pytest.skip("PostgreSQL (Debian's package `postgresql`) is not installed")
    with running_postgres() as postgres:
        database = Database(postgres.url, DAY_S, 1 << 26)
        state = state_of(ResponseStore(database, 1 << 26))
        async with serve(reply("Hello"), state=state) as served:
            first = (await create(served)).json()
            assert (await served.http.get(f"/v1/responses/{first['id']}")).status_code == 200
            await asyncio.to_thread(postgres.stop)
            started_s = time.monotonic()
            whole = (await create(served)).json()
            assert time.monotonic() - started_s < 6 and whole["toolwire"]["notes"][0]["kind"] == "not_kept"
            assert (await served.http.get("/ready")).json()["response_store"] == "failing"
            await asyncio.to_thread(postgres.start)
            state.store._retry_at_s = 0.0
            assert (await served.http.get(f"/v1/responses/{first['id']}")).json() == first
        database.close()


def page_params() -> list[tuple[dict[str, str], int]]:
    return [({"limit": "0"}, 400), ({"limit": "x"}, 400), ({"order": "up"}, 400), ({"after": "none"}, 404)]


@pytest.mark.parametrize(("params", "status"), page_params(), ids=str)
async def test_pages_out_of_range(
    serve: Serve, reply: Reply, state: ResponsesState, params: dict[str, str], status: int
) -> None:
    async with serve(reply("Hello"), state=state) as served:
        whole = (await create(served)).json()
        answer: httpx.Response = await served.http.get(f"/v1/responses/{whole['id']}/input_items", params=params)
    assert answer.status_code == status


async def test_the_tokens_of_a_request_are_counted(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply("Hello"), state=state) as served:
        first = (await create(served)).json()
        fields = {"model": "org/tiny", "input": "And you?", "previous_response_id": first["id"], "tools": [TOOL]}
        counted = (await served.http.post("/v1/responses/input_tokens", json=fields)).json()
        whole = (await served.http.post("/v1/responses", json=fields)).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": whole["usage"]["input_tokens"]}


async def test_codex_finds_its_patch_tool_in_the_list_of_models(serve: Serve) -> None:
    async with serve() as served:
        (model,) = (await served.http.get("/v1/models?client_version=1")).json()["models"]
    assert model["slug"] == "org/tiny" and model["apply_patch_tool_type"] == "freeform" and model["context_window"]
    assert "apply_patch" in model["base_instructions"]  # an empty text would leave Codex without any
    assert model["tool_mode"] is None
