"""Compaction through the real routes: the messages of the user, and a summary that renders where it stands."""

import json
from copy import deepcopy
from typing import Any

from openai.types.responses import CompactedResponse, ResponseItem
from pydantic import TypeAdapter

from server.api.responses.compaction import PROMPT
from server.api.responses.conversation import SUMMARY
from server.api.responses.state import ResponsesState
from tests.api.conftest import MODEL, Serve, Served
from tests.api.responses.strict_types import check_no_extra
from tests.api.responses.test_router import TOOL, Reply, create

CONVERSATION: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Weather in Paris?"},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"city": "Paris"}'},
    {"type": "function_call_output", "call_id": "c", "output": "21"},
    {"role": "assistant", "content": "It is 21 degrees."},
    {"role": "user", "content": "And tomorrow?"},
    {"role": "assistant", "content": "Colder."},
]
USAGE_KEYS = ("input_tokens", "output_tokens", "total_tokens")


async def compact(served: Served, **fields: Any) -> dict[str, Any]:
    """The reply, checked. openai's type of `output` has no messages of the user, although its text says so."""
    answer = await served.http.post("/v1/responses/compact", json={"model": MODEL, "input": CONVERSATION, **fields})
    assert answer.status_code == 200, answer.text
    sent: dict[str, Any] = answer.json()
    shown = deepcopy(sent)
    shown.pop("toolwire", None)
    messages, shown["output"] = shown["output"][:-1], shown["output"][-1:]
    check_no_extra(CompactedResponse.model_validate(shown), "compacted")
    for message in messages:
        check_no_extra(TypeAdapter(ResponseItem).validate_python(message), "message")
    assert sent["usage"]["input_tokens"] + sent["usage"]["output_tokens"] == sent["usage"]["total_tokens"]
    return sent


async def test_it_stands_for_the_conversation(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    """Sent back it has the prompt of the same messages with the summary as a message of the user."""
    async with serve(reply("Paris: 21 degrees, then colder."), state=state) as served:
        whole = await compact(served, tools=[TOOL])
        prompt = served.text_of(served.backend.asked[-1].token_ids)
        assert all(text in prompt for text in ("Weather in Paris?", "It is 21 degrees.", "Colder.", PROMPT))
        *messages, item = whole["output"]
        assert [one["content"][0]["text"] for one in messages] == ["Be brief.", "Weather in Paris?", "And tomorrow?"]
        (note,) = whole["toolwire"]["notes"]
        listed = "2 message, 1 function_call, 1 function_call_output, 1 reasoning"
        assert note["kind"] == "compacted" and all(one in note["text"] for one in listed.split(", "))
        next_message = {"role": "user", "content": "And then?"}
        await create(served, input=[*whole["output"], next_message])
        by_items = served.backend.asked[-1].token_ids
        summary = {"role": "user", "content": f"{SUMMARY}Paris: 21 degrees, then colder."}
        await served.chat(messages=[CONVERSATION[0], CONVERSATION[1], CONVERSATION[6], summary, next_message])
        assert by_items == served.backend.asked[-1].token_ids
        again = await compact(served, input=[*whole["output"], next_message])
        assert again["output"][:-1] == [*messages, again["output"][-2]] and again["output"][-1] != item
        assert "Paris: 21 degrees" in served.text_of(served.backend.asked[-1].token_ids)


async def test_kept_responses_are_compacted(serve: Serve, reply: Reply, state: ResponsesState) -> None:
    async with serve(reply("Hello"), state=state) as served:
        first = (await create(served)).json()
        whole = await compact(served, input=None, previous_response_id=first["id"])
        assert whole["output"][0]["content"][0]["text"] == "Hi"
        kept = (await create(served, input=[*whole["output"], {"role": "user", "content": "So?"}])).json()
        await create(served, input="More", previous_response_id=kept["id"])
        assert "Summary of the conversation" in served.text_of(served.backend.asked[-1].token_ids)
        page = (await served.http.get(f"/v1/responses/{kept['id']}/input_items")).json()
        check_no_extra(TypeAdapter(ResponseItem).validate_python(page["data"][1]), "compaction")


async def test_changed_summaries_are_refused_and_foreign_ones_left_out(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello")) as served:
        item = (await compact(served))["output"][-1]
        asks = {"role": "user", "content": "So?"}
        sealed = item["encrypted_content"]
        for text in (f"{sealed[:-3]}AAA", f"{sealed[:9]}{'b' if sealed[9] == 'a' else 'a'}{sealed[10:]}"):
            answer = await create(served, input=[{**item, "encrypted_content": text}, asks])
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_encrypted_content"
        thought = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
        assert (await create(served, input=[thought, asks])).status_code == 400  # a summary is no thought
        foreign = await create(served, input=[{"type": "compaction", "encrypted_content": "gAAAA"}, asks])
        assert foreign.json()["toolwire"]["notes"][0]["kind"] == "left_out"


async def test_what_does_not_fit_is_dropped_and_said(serve: Serve, reply: Reply) -> None:
    """Clients compact when the window is full: the summary is of what still fits, and a part of the messages stays."""
    long = [{"role": "user", "content": f"{number} " + "word " * 700} for number in range(12)]
    turns = [item for one in long for item in (one, {"role": "assistant", "content": "Yes."})]
    async with serve(reply("Twelve times many words.")) as served:
        assert (await create(served, input=[*turns, {"role": "user", "content": "So?"}])).status_code == 400
        whole = await compact(served, input=turns)
    notes = whole["toolwire"]
    kept = [one["content"][0]["text"].split()[0] for one in whole["output"][:-1]]
    assert kept == [str(number) for number in range(12)][-len(kept) :] and 0 < len(kept) < 12
    assert notes["dropped_messages"] > 0
    assert f"the oldest {12 - len(kept)} of 12 messages" in json.dumps(notes["notes"])


async def test_a_summary_that_is_cut_says_so(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Paris: 21", finish="length")) as served:
        whole = await compact(served)
    assert any("cut" in note["text"] for note in whole["toolwire"]["notes"])
