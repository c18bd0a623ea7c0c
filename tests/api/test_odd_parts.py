"""Parts of requests that are empty, numbered or spelled otherwise: read in the sense they have, on every surface."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import MODEL, Serve
from tests.api.test_surfaces import SURFACES, USER, WITH_MESSAGES, asked_of, past, post, tools_of
from tests.backends.scripted import Script

Reply = Callable[..., Script]


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("field", ["guided_grammar", "grammar", "ebnf", "guided_regex", "regex", "guided_json"])
async def test_an_empty_constraint_is_none(serve: Serve, reply: Reply, surface: str, field: str) -> None:
    """Programs send every field that they have; an empty grammar was a 500, an empty expression an empty answer."""
    async with serve(reply("Hi")) as served:
        for fields in ({field: ""}, {"structured_outputs": {"regex": "", "grammar": None}}):
            assert (await asked_of(served, surface, **fields)).constraint is None


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_expression_that_ends_in_a_backslash_is_refused(serve: Serve, surface: str) -> None:
    """The answer was held to the expression without it."""
    async with serve() as served:
        answer = await post(served, surface, guided_regex="abc\\")
    assert answer.status_code == 400 and "guided_regex" in answer.text


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("content", [None, [{"type": "text", "text": None}], [None], []], ids=str)
async def test_a_message_without_content_is_empty(serve: Serve, reply: Reply, surface: str, content: Any) -> None:
    field = "input" if surface == "responses" else "messages"
    async with serve(reply("Hi")) as served:
        asked = await asked_of(served, surface, **{field: [USER, {"role": "assistant", "content": content}, USER]})
        assert "<|im_start|>assistant\n<|im_end|>" in served.text_of(asked.token_ids)


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("kind", ["Thinking", "reasoning-text", "reasoning_content"])
async def test_the_kind_of_a_thought_in_another_spelling(serve: Serve, reply: Reply, surface: str, kind: str) -> None:
    content = [{"type": kind, "reasoning_content": "Hm."}, {"type": "text", "text": "Let me look."}]
    fields = past(surface, "ok")
    if surface == "responses":
        fields["input"].insert(1, {"role": "assistant", "content": content})
    else:
        fields["messages"][1] |= {"content": content + fields["messages"][1].get("content", [])}
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **fields)).token_ids)
    assert "<think>\nHm.\n</think>\n\nLet me look." in prompt, prompt


@pytest.mark.parametrize("surface", WITH_MESSAGES)
async def test_a_name_in_the_history_that_is_no_text_is_its_json(serve: Serve, reply: Reply, surface: str) -> None:
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **past(surface, "ok", name=7))).token_ids)  # type: ignore[arg-type]
    assert '"name": "7"' in prompt


@pytest.mark.parametrize("surface", ["chat", "responses"])
async def test_an_id_may_be_a_number(serve: Serve, reply: Reply, surface: str) -> None:
    sent = json.loads(json.dumps(past(surface, "ok")).replace('"c"', "7"))
    async with serve(reply("Hi")) as served:
        await asked_of(served, surface, **sent)
    async with serve(strict=True) as served:
        assert (await post(served, surface, **sent)).status_code == 400


async def test_messages_of_chat_in_the_input_of_a_response_are_its_items(serve: Serve, reply: Reply) -> None:
    """Their calls were dropped in silence."""
    messages = past("chat", "cold", arguments={"city": "Oslo"})["messages"]
    async with serve(reply("Hi")) as served:
        of_chat = served.text_of((await asked_of(served, "chat", messages=messages)).token_ids)
        assert served.text_of((await asked_of(served, "responses", input=messages)).token_ids) == of_chat
    assert "Oslo" in of_chat and "cold" in of_chat


async def test_the_id_of_an_item_is_that_of_its_call_where_it_has_none(serve: Serve, reply: Reply) -> None:
    sent = json.loads(json.dumps(past("responses", "ok")).replace('"call_id"', '"id"'))
    async with serve(reply("Hi")) as served:
        await asked_of(served, "responses", **sent)


async def test_metadata_of_a_response_may_hold_other_values(serve: Serve, reply: Reply) -> None:
    """OpenAI's limits hold with `--strict` alone, as on Chat Completions."""
    sent = {"a": 1, "b": None, **{str(i): "x" for i in range(20)}}
    async with serve(reply("Hi")) as served:
        answer = await post(served, "responses", metadata=sent)
    assert answer.json()["metadata"] == {**sent, "a": "1", "b": "null"}
    async with serve(strict=True) as served:
        assert (await post(served, "responses", metadata=sent)).status_code == 400


@pytest.mark.parametrize("surface", WITH_MESSAGES)
async def test_php_s_empty_arrays_are_schemas_and_an_enum_that_is_none_is_refused(
    serve: Serve, reply: Reply, surface: str
) -> None:
    """The first was a 400, the second a 500."""
    array = {"type": "array", "items": []}
    empty = {"type": "object", "properties": {"a": [], "b": array}, "additionalProperties": []}
    async with serve(reply("Hi")) as served:
        answer = await post(served, surface, **tools_of(surface, empty, strict=False))
        assert answer.status_code == 200, answer.text
        assert [note["kind"] for note in answer.json()["toolwire"]["notes"]] == ["schema"] * 3
        member = {"type": "object", "properties": {"a": {"enum": "x"}}}
        assert (await post(served, surface, **tools_of(surface, member))).status_code == 400


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""], ids=["mark", "no mark"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
async def test_a_body_in_another_coding_is_read(serve: Serve, reply: Reply, coding: str, mark: bytes) -> None:
    """Shells and old libraries write a byte order mark, or UTF-16: the whole request was "could not parse"."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Grüße 😀"}]}, ensure_ascii=False)
    raw = (mark if coding == "utf-8" else b"") + body.encode(coding)
    async with serve(reply("Hi")) as served:
        answer = await served.http.post("/v1/chat/completions", content=raw)
        assert answer.status_code == 200, answer.text
        assert "Grüße 😀" in served.text_of(served.backend.asked[-1].token_ids)


async def test_bytes_of_a_character_that_was_cut_are_read_and_noted(serve: Serve, reply: Reply) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "21 CUT"}]}
    raw = json.dumps(body).encode().replace(b"CUT", b"\xf0\x9f\x98")
    async with serve(reply("Hi")) as served:
        answer = await served.http.post("/v1/chat/completions", content=raw)
        assert "21 \ufffd<" in served.text_of(served.backend.asked[-1].token_ids)
    (note,) = answer.json()["toolwire"]["notes"]
    assert (note["kind"], note["param"]) == ("half_surrogate", "messages[0].content")
    async with serve(strict=True) as served:
        assert (await served.http.post("/v1/chat/completions", content=raw)).status_code == 400


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("word", ["DISABLED", "Off", 0, "False"], ids=str)
async def test_a_switch_in_another_case_or_as_a_number(serve: Serve, reply: Reply, surface: str, word: Any) -> None:
    async with serve(reply("Hi")) as served:
        off = served.text_of((await asked_of(served, surface, thinking=word)).token_ids)
        unsaid = served.text_of((await asked_of(served, surface, reasoning_effort="default")).token_ids)
    assert off.endswith("<think>\n\n</think>\n\n") and not unsaid.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/completions", "POST /v1/completions? The base URL ends with /v1."),
        ("/v1//chat/completions", "POST /v1/chat/completions? The base URL ends with /v1."),
        ("/v1/v1/messages", "POST /v1/messages? Anthropic's clients add /v1 to the base URL."),
    ],
)
async def test_a_wrong_path_names_the_nearest(serve: Serve, path: str, meant: str) -> None:
    """It named Chat Completions for each, and a base URL that Anthropic's clients must not have."""
    async with serve() as served:
        answer = await served.http.post(path, json={})
    assert answer.status_code == 404 and meant in answer.json()["error"]["message"], answer.text
