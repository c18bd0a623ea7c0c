"""Requests as clients of other servers write them: read alike on every surface, or refused by name; nothing dropped."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.api.responses.state import ResponsesState
from server.messages import Generate
from tests.api.conftest import MODEL, Serve, Served
from tests.backends.scripted import Script

Reply = Callable[..., Script]
USER = {"role": "user", "content": "Hi"}
SURFACES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [USER]}),
    "responses": ("/v1/responses", {"input": "Hi"}),
    "messages": ("/v1/messages", {"messages": [USER], "max_tokens": 100}),
    "completions": ("/v1/completions", {"prompt": "Hi"}),
}
WITH_MESSAGES = [name for name in SURFACES if name != "completions"]
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
HALF = "21 \ud83d"
OFF = "<think>\n\n</think>\n\n"  # at the end of a prompt


async def post(served: Served, surface: str, **fields: Any) -> httpx.Response:
    path, body = SURFACES[surface]
    return await served.http.post(path, content=json.dumps({"model": MODEL, **body, **fields}))


async def asked_of(served: Served, surface: str, **fields: Any) -> Generate:
    """What reaches the engine of a request that is served."""
    answer = await post(served, surface, **fields)
    assert answer.status_code == 200, answer.text
    return served.backend.asked[-1]


def past(surface: str, result: Any, name: str | None = "get_weather", arguments: Any = None) -> dict[str, Any]:
    """Fields with one call and its result."""
    given = {} if arguments is None else arguments
    call: dict[str, Any]
    if surface == "responses":
        call = {"type": "function_call", "call_id": "c", "name": name, "arguments": json.dumps(given)}
        return {"input": [USER, call, {"type": "function_call_output", "call_id": "c", "output": result}]}
    if surface == "messages":
        use = {"type": "tool_use", "id": "c", "name": name, "input": given}
        back = {"type": "tool_result", "tool_use_id": "c", "content": result}
        return {"messages": [USER, {"role": "assistant", "content": [use]}, {"role": "user", "content": [back]}]}
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
    back = {"role": "tool", "tool_call_id": "c", "content": result}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, back]}


def tools_of(surface: str, parameters: Any, name: str = "look", **more: Any) -> dict[str, Any]:
    """The field `tools` with one tool."""
    if surface == "messages":
        return {"tools": [{"name": name, "input_schema": parameters, **more}]}
    function = {"name": name, "parameters": parameters, **more}
    return {
        "tools": [
            {"type": "function", **function} if surface == "responses" else {"type": "function", "function": function}
        ]
    }


PLACE_OF_SCHEMA = {
    "chat": "tools[0].function.parameters",
    "responses": "tools[0].parameters",
    "messages": "tools[0].input_schema",
}
CONSTRAINTS: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": PERSON}, '"name"'),
    ({"guided_json": json.dumps(PERSON)}, '"name"'),
    ({"guided_json_object": True}, "%json"),
    ({"guided_regex": "^[a-z]+/[0-9]$"}, "start: /[a-z]+\\/[0-9]/"),
    ({"guided_choice": ["yes", 'n"o', 7, 1.5, True]}, '"yes" | "n\\"o" | "7" | "1.5" | "true"'),
    ({"guided_grammar": 'start: "a"+'}, 'start: "a"+'),
    ({"guided_grammar": 'root ::= "a"+'}, 'start: "a"+'),
    ({"structured_outputs": {"choice": ["a"]}}, 'start: "a"'),
    ({"structured_outputs": {"json": PERSON}}, '"name"'),
    ({"json_schema": PERSON}, '"name"'),
    ({"regex": r"\$"}, r"start: /\$/"),
    ({"grammar": 'start: "a"+'}, 'start: "a"+'),
    ({"ebnf": 'root ::= "a"+'}, 'start: "a"+'),
    ({"extra_body": {"guided_choice": ["a"]}}, 'start: "a"'),
    ({"extra_body": {"extra_body": {"guided_choice": ["a"]}}}, 'start: "a"'),
    ({"response_format": {"type": "json_object"}}, "%json"),
    ({"response_format": {"type": "json_object", "schema": PERSON}}, '"name"'),
    ({"response_format": {"type": "json_object", "value": PERSON}}, '"name"'),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "x", "schema": PERSON}}}, '"name"'),
    ({"response_format": {"type": "json_object", "json_schema": PERSON}}, '"name"'),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}}, '"name"'),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}}}, '"name"'),
    ({"response_format": {"type": "json_schema", "json_schema": PERSON}}, '"name"'),
    ({"response_format": {"type": "json_schema", "schema": PERSON}}, '"name"'),
    ({"response_format": {"type": "json_schema", "name": "x", "strict": True, "schema": PERSON}}, '"name"'),
    ({"response_format": {"type": "json_schema", "schema": json.dumps(PERSON)}}, '"name"'),
    ({"response_format": {"type": "json", "value": PERSON}}, '"name"'),
    ({"response_format": {"schema": PERSON}}, '"name"'),
    ({"response_format": "json_object"}, "%json"),
    ({"response_format": {"type": "json_object"}, "guided_json": PERSON}, '"name"'),
    ({"response_format": {"type": "json_object"}, "json_schema": PERSON}, '"name"'),
    ({"response_format": {"type": "json_schema", "schema": PERSON}, "json_schema": PERSON}, '"name"'),
]


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(("fields", "grammar"), CONSTRAINTS, ids=str)
async def test_every_spelling_of_a_constraint_holds_the_answer(
    serve: Serve, reply: Reply, surface: str, fields: dict[str, Any], grammar: str
) -> None:
    """It was honoured on Chat alone, or a schema at the wrong place of a format was dropped in silence."""
    async with serve(reply("Hi")) as served:
        constraint = (await asked_of(served, surface, **fields)).constraint
    assert constraint is not None and grammar in constraint.source


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "text", "schema": PERSON}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"name": "x", "schema": PERSON}}}, "response_format"),
        ({"response_format": {"schema": PERSON, "json_schema": {"schema": {}}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": 7}}, "response_format.json_schema"),
        ({"response_format": {"type": ["json"]}}, "response_format.type"),
        ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}, "guided_json": {"type": "array"}}, "guided_json"),
        ({"guided_choice": ["a", None]}, "guided_choice[1]"),
        ({"guided_choice": ["a", {}]}, "guided_choice[1]"),
        ({"guided_json": PERSON, "guided_regex": "a"}, "guided_regex"),
        ({"extra_body": {"structural_tag": "x"}}, "structural_tag"),
        ({"structural_tag": "x"}, "structural_tag"),
        ({"response_schema": PERSON}, "response_schema"),
        ({"format": PERSON}, "format"),
    ],
    ids=str,
)  # fmt: skip
async def test_a_constraint_that_cannot_be_held_is_refused_by_its_field(
    serve: Serve, surface: str, fields: dict[str, Any], param: str
) -> None:
    async with serve() as served:
        answer = await post(served, surface, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert param in error["message"] if surface == "messages" else error["param"] == param


@pytest.mark.parametrize(
    ("surface", "fields"),
    [
        ("responses", {"text": {"format": {"type": "json_object", "schema": PERSON}}}),
        ("responses", {"text": {"format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}}}),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": PERSON}}}),
        ("messages", {"output_config": {"format": {"type": "json_object", "schema": PERSON}}}),
        ("messages", {"output_config": {"format": {"type": "json_schema", "json_schema": {"schema": PERSON}}}}),
        ("messages", {"output_format": {"type": "json_schema", "schema": PERSON}}),
    ],
    ids=str,
)
async def test_a_surface_s_own_format_in_another_s_form(
    serve: Serve, reply: Reply, surface: str, fields: dict[str, Any]
) -> None:
    """The schema of `json_object` was dropped in silence on Responses."""
    async with serve(reply("Hi")) as served:
        constraint = (await asked_of(served, surface, **fields)).constraint
    assert constraint is not None and '"name"' in constraint.source


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize(
    "fields",
    [
        {"enable_thinking": False}, {"enable_thinking": "off"}, {"think": False}, {"think": "none"},
        {"thinking": False},
        {"thinking": "disabled"}, {"thinking": {"type": "disabled"}}, {"thinking": {"enabled": False}},
        {"reasoning": {"effort": "none"}}, {"reasoning": {"effort": "off"}}, {"reasoning": {"enabled": False}},
        {"reasoning": False}, {"reasoning": {"type": "disabled"}}, {"reasoning_effort": "none"},
        {"reasoning_effort": "off"}, {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}}, {"chat_template_kwargs": {"enable_thinking": "false"}},
        {"extra_body": {"enable_thinking": False}}, {"think": False, "reasoning_effort": "high"},
    ],
    ids=str,
)  # fmt: skip
async def test_every_spelling_of_the_thinking_switch(
    serve: Serve, reply: Reply, surface: str, fields: dict[str, Any]
) -> None:
    """On other surfaces than Chat it was ignored, and the client waited for thoughts that it had turned off."""
    async with serve(reply("Hi")) as served:
        assert served.text_of((await asked_of(served, surface, **fields)).token_ids).endswith(OFF)
        assert not served.text_of((await asked_of(served, surface)).token_ids).endswith(OFF)


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_budget": 9}, {"thinking_token_budget": 9}, {"thinking": {"type": "enabled", "budget_tokens": 9}},
        {"thinking": {"budget_tokens": 9}}, {"reasoning": {"max_tokens": 9}}, {"extra_body": {"thinking_budget": 9}},
        {"thinking_budget": -1, "thinking_token_budget": 9},
        {"thinking_token_budget": -1, "thinking": {"budget_tokens": 9}},
    ],
    ids=str,
)  # fmt: skip
async def test_every_spelling_of_the_thinking_budget(
    serve: Serve, reply: Reply, surface: str, fields: dict[str, Any]
) -> None:
    async with serve(reply("Hi")) as served:
        phase = (await asked_of(served, surface, **fields)).reasoning_phase
    assert phase is not None and phase.limit == 9


async def test_a_completion_says_that_it_has_no_thinking_switch(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        notes = (await post(served, "completions", enable_thinking=False)).json()["toolwire"]["notes"]
    assert [(note["kind"], note["param"]) for note in notes] == [("ignored", "enable_thinking")]


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ([{"a": 1}], '[{"a": 1}]'), ([{"a": 1}, {"b": None}], '[{"a": 1}, {"b": null}]'), (7, "7"), (1.5, "1.5"),
        (True, "true"), (False, "false"), ([1, "é", None], "1é"), ([1, 2], "[1, 2]"),
        ({"sky": "blå"}, '{"sky": "blå"}'),
        ([{"type": "file", "name": "a.txt"}], '[{"type": "file", "name": "a.txt"}]'), (None, ""), ([], ""),
        ([{"type": "text", "text": "x"}, {"a": 1}], 'x{"a": 1}'), (["a", "b"], "ab"),
        ({"type": "text", "text": "x"}, "x"), ([{"text": "x"}], "x"), ([{"type": "text"}], '[{"type": "text"}]'),
        ({"type": "row", "id": 7}, '{"type": "row", "id": 7}'),
    ],
    ids=str,
)  # fmt: skip
async def test_a_result_that_is_no_text_is_its_json(
    serve: Serve, reply: Reply, surface: str, result: Any, shown: str
) -> None:
    """Tools return data; a request with it was refused, and the session with it."""
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **past(surface, result))).token_ids)
    assert f"<tool_response>\n{shown}\n</tool_response>" in prompt


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize(
    "result",
    [
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}],
        [{"type": "image", "data": "eA==", "mimeType": "image/png"}, {"type": "text", "text": "x"}],
        [{"type": "input_image", "image_url": "data:image/png;base64,eA=="}],
        {"type": "image_url", "image_url": {"url": "x"}},
    ],
    ids=str,
)
async def test_a_picture_in_a_result_is_refused(serve: Serve, surface: str, result: Any) -> None:
    async with serve() as served:
        answer = await post(served, surface, **past(surface, result))
    assert answer.status_code == 400 and "reads text" in answer.text


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Hm."}, {"type": "thought", "thought": "Hm."},
        {"type": "think", "think": "Hm."},
        {"type": "reasoning", "text": "Hm."}, {"type": "reasoning.text", "text": "Hm."},
        {"text": "Hm.", "thought": True},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
    ],
    ids=str,
)  # fmt: skip
async def test_a_thought_among_the_parts_of_a_reply_is_its_thought(
    serve: Serve, reply: Reply, surface: str, part: dict[str, Any]
) -> None:
    fields = past(surface, "ok")
    content = [part, {"type": "text", "text": "Let me look."}]
    if surface == "responses":
        fields["input"].insert(1, {"role": "assistant", "content": content})
    else:
        called = fields["messages"][1]
        fields["messages"][1] = {**called, "content": content + called.get("content", [])}
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **fields)).token_ids)
    assert "<think>\nHm.\n</think>\n\nLet me look." in prompt, prompt


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("name", ["read file", "", "functions.bash:3"])
async def test_a_name_in_the_history_that_is_no_name_is_shown(
    serve: Serve, reply: Reply, surface: str, name: str
) -> None:
    """What a model once wrote made every later request of its session a 400."""
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **past(surface, "ok", name=name))).token_ids)
    assert f'"name": "{name}", "arguments": {{}}' in prompt


@pytest.mark.parametrize("surface", WITH_MESSAGES)
async def test_null_among_the_parts_of_a_message_is_none(serve: Serve, reply: Reply, surface: str) -> None:
    parts = [{"type": "thinking", "thinking": None}, None, {"type": "text", "text": "Yes"}]
    field = "input" if surface == "responses" else "messages"
    async with serve(reply("Hi")) as served:
        asked = await asked_of(served, surface, **{field: [USER, {"role": "assistant", "content": parts}, USER]})
        assert "<|im_start|>assistant\nYes<|im_end|>" in served.text_of(asked.token_ids)
        await asked_of(served, surface, **past(surface, "ok", name=None))


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("kind", ["redacted_thinking", "redacted_reasoning"])
async def test_an_encrypted_thought_is_left_out_on_every_surface(
    serve: Serve, reply: Reply, surface: str, kind: str
) -> None:
    parts = [{"type": kind, "data": "c2VjcmV0"}, {"type": "text", "text": "Yes"}]
    field = "input" if surface == "responses" else "messages"
    async with serve(reply("Hi")) as served:
        asked = await asked_of(served, surface, **{field: [USER, {"role": "assistant", "content": parts}, USER]})
        prompt = served.text_of(asked.token_ids)
    assert "Yes" in prompt and "c2VjcmV0" not in prompt


@pytest.mark.parametrize("surface", PLACE_OF_SCHEMA)
async def test_notes_on_schemas_name_the_place_in_the_surface_s_own_form(
    serve: Serve, reply: Reply, surface: str
) -> None:
    """They named Chat's place on every surface."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)"}}}
    async with serve(reply("Hi")) as served:
        answer = await post(served, surface, **tools_of(surface, schema, strict=False))
    notes = answer.json()["toolwire"]["notes"]
    assert [note["param"] for note in notes] == [f"{PLACE_OF_SCHEMA[surface]}.properties.a"]


@pytest.mark.parametrize(
    ("surface", "fields", "param"),
    [
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
         "response_format.json_schema.schema"),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text.format.schema"),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
         "output_config.format.schema"),
    ],
)  # fmt: skip
async def test_notes_on_the_answer_s_schema_name_its_place(
    serve: Serve, reply: Reply, surface: str, fields: dict[str, Any], param: str
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)"}}}
    sent = json.loads(json.dumps(fields).replace('"schema": {}', '"schema": ' + json.dumps(schema)))
    async with serve(reply("Hi")) as served:
        notes = (await post(served, surface, **sent)).json()["toolwire"]["notes"]
    assert [note["param"] for note in notes] == [f"{param}.properties.a"]


@pytest.mark.parametrize("surface", PLACE_OF_SCHEMA)
@pytest.mark.parametrize("fields", ["tool", "history", "half", "constraint"])
async def test_strict_is_strict_on_every_surface(serve: Serve, surface: str, fields: str) -> None:
    """Names with dots, and names of the history that are none, were refused on Chat alone."""
    sent = {
        "tool": tools_of(surface, PERSON, name="catalog.get-entity"),
        "history": past(surface, "ok", name="functions.bash:3"),
        "half": past(surface, HALF),
        "constraint": {"guided_choice": ["a"]},
    }[fields]
    async with serve(strict=True) as served:
        answer = await post(served, surface, **sent)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("surface", PLACE_OF_SCHEMA)
async def test_null_in_tools_is_left_out_of_the_prompt(serve: Serve, reply: Reply, surface: str) -> None:
    null = None
    member = {"type": "string", "enum": null, "const": null, "default": null, "description": null, "pattern": null}
    schema = {"type": "object", "properties": {"a": member, "b": null}, "required": null, "$defs": null}
    async with serve(reply("Hi")) as served:
        asked = await asked_of(served, surface, **tools_of(surface, schema, description=None, strict=None))
        prompt = served.text_of(asked.token_ids)
    assert '"parameters": {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}}' in prompt


@pytest.mark.parametrize("bound", ["Infinity", "NaN", "1e400", "9" * 400, "-Infinity"])
@pytest.mark.parametrize("surface", PLACE_OF_SCHEMA)
async def test_a_bound_that_is_no_number_is_not_enforced(serve: Serve, reply: Reply, surface: str, bound: str) -> None:
    """Python writes `Infinity`; the whole request was refused, naming no tool."""
    schema = {"type": "object", "properties": {"a": {"type": "number", "maximum": "BOUND"}}}
    path, body = SURFACES[surface]
    raw = json.dumps({"model": MODEL, **body, **tools_of(surface, schema)}).replace('"BOUND"', bound)
    async with serve(reply("Hi")) as served:
        answer = await served.http.post(path, content=raw)
        assert answer.status_code == 200, answer.text
        other = await served.http.post(path, content=raw.replace("maximum", "title"))
    notes = answer.json()["toolwire"]["notes"]
    assert [(note["kind"], note["param"]) for note in notes] == [
        ("schema", f"{PLACE_OF_SCHEMA[surface]}.properties.a.maximum")
    ]
    assert other.status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        *((path, {**body, "user": HALF}, "user") for path, body in SURFACES.values()),
        ("/tokenize", {"prompt": HALF}, "prompt"),
        ("/detokenize", {"tokens": [1], "note": HALF}, "note"),
        ("/v1/conversations", {"metadata": {"k": HALF}}, "metadata.k"),
        ("/v1/conversations", {"items": [{"role": "user", "content": HALF}]}, "items[0].content"),
    ],
)
async def test_half_a_surrogate_pair_is_read_wherever_a_string_comes_in(
    serve: Serve, reply: Reply, state: ResponsesState, path: str, body: dict[str, Any], param: str
) -> None:
    """A U+FFFD that was sent is none of the server's, and is not noted."""
    async with serve(reply("Hi"), state=state) as served:
        for text, noted in ((HALF, [param]), ("21 \ufffd", [])):
            raw = json.dumps({"model": MODEL, "metadata": {"other": "\ufffd"}, **body}).replace(
                json.dumps(HALF), json.dumps(text)
            )
            answer = await served.http.post(path, content=raw)
            assert answer.status_code == 200, answer.text
            notes = answer.json().get("toolwire", {}).get("notes", [])
            assert [note["param"] for note in notes if note["kind"] == "half_surrogate"] == noted


REPAIRS: dict[str, dict[str, list[Any]]] = {
    "responses": {
        "missing": [USER, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, USER],
        "lost one": [{"type": "function_call_output", "call_id": "z", "output": "lost one"}, USER],
        "early one": [
            {"type": "function_call_output", "call_id": "c", "output": "early one"}, USER,
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, USER,
        ],
    },
    "messages": {
        "missing": [
            USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}, USER,
        ],
        "lost one": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "z", "content": "lost one"}]}],
        "early one": [
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "early one"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}, USER,
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("surface", REPAIRS)
@pytest.mark.parametrize("case", ["missing", "lost one", "early one"])
async def test_histories_are_repaired_on_every_surface(serve: Serve, reply: Reply, surface: str, case: str) -> None:
    """`--repair-history` held on Chat alone; agents of other surfaces are interrupted as well."""
    fields = {"input" if surface == "responses" else "messages": REPAIRS[surface][case]}
    async with serve() as served:
        assert (await post(served, surface, **fields)).status_code == 400
    async with serve(reply("Hi"), repair_history=True) as served:
        answer = await post(served, surface, **fields)
        assert answer.status_code == 200, answer.text
        prompt = served.text_of(served.backend.asked[-1].token_ids)
    assert case in prompt
    assert {note["kind"] for note in answer.json()["toolwire"]["notes"]} == {"history"}
