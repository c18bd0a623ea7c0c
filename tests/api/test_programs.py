"""Requests in the shape that coding agents send, in every dialect: served, each prompt an addition to the last."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from server.checkpoint.checkpoint import Checkpoint
from tests.agents.recorder import FIXTURES, SentRequest, packed, read_fixture, unpacked
from tests.api.conftest import MODEL, Serve
from tests.backends.scripted import deltas
from tests.families import FAMILIES, family_checkpoint

HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-2099-01-01,b-2099-01-01", "x-app": "cli"}
PROGRAMS = sorted(path.stem for path in FIXTURES.glob("*.json") if not path.stem.endswith("-session"))
MAX_TAIL = 24  # tokens that open a reply, which a history may show otherwise


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """Each family's vocabulary and template, with a window for what such programs send."""
    return replace(Checkpoint.open(family_checkpoint(request.param)), max_model_len=131_072)


def common_length(one: list[int], other: list[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_session_is_served_from_one_prefix(serve: Serve, checkpoint: Checkpoint, program: str) -> None:
    """A field that is refused ends the program; a prompt that begins otherwise in each round is computed whole."""
    ids = checkpoint.tokenizer.encode("It says hello.", add_special_tokens=False).ids
    prompts: list[list[int]] = []
    async with serve(deltas([*ids, checkpoint.stop_ids[0]])) as served:
        for request in read_fixture(program, MODEL):
            num_asked = len(served.backend.asked)
            response = await served.http.post(request.path, json=request.body, headers=HEADERS)
            assert response.status_code == 200, response.text
            assert "error" not in {line.removeprefix("event: ") for line in response.text.splitlines()}
            if request.body.get("tools") and len(served.backend.asked) > num_asked:
                prompts.append(served.backend.asked[-1].token_ids)
    assert len(prompts) >= 2
    for before, after in pairwise(prompts):
        num_common = common_length(before, after)
        assert num_common >= len(before) - MAX_TAIL and num_common > 0.9 * len(after)


def test_shapes_keep_fields_and_types_and_no_texts() -> None:
    """A recorder that keeps a text, or drops a field, makes fixtures that may not be kept, or that test nothing."""
    call = {"type": "tool_use", "id": "toolu_x8", "name": "Bash", "input": {"command": "cat note.txt"}}
    tool: dict[str, Any] = {"name": "Bash", "description": "Runs commands", "input_schema": {"type": "object"}}
    tool["input_schema"]["properties"] = {"arguments": {"type": "string", "description": "Runs with these"}}
    line = {"type": "text", "text": "x-anthropic-billing-header: cc_version=9; cch=1a2b3;"}
    asked = {"role": "user", "content": "What does it say?"}
    first: dict[str, Any] = {"model": "m", "stream": True, "system": [line], "tools": [tool], "messages": [asked]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_x8", "content": "Green."}]}
    second = {**first, "messages": [asked, {"role": "assistant", "content": [call]}, result]}
    shapes = packed([SentRequest("/v1/messages?beta=true", body) for body in (first, second)])
    assert not [word for word in ("Runs", "What", "Green", "x8", "1a2b3") if word in str(shapes)]
    assert shapes[1]["repeated"] == {"messages": 1} and set(shapes[1]["same"]) == {"model", "stream", "tools"}
    read = [one.body for one in unpacked(shapes, MODEL)]
    assert [sorted(body) for body in read] == [sorted(first), sorted(second)]
    assert len(read[1]["messages"][0]["content"]) == len("What does it say?") and read[1]["tools"] == read[0]["tools"]
    assert read[1]["messages"][1]["content"][0] == {**call, "id": "toolu_0"}
    assert read[1]["messages"][2]["content"][0]["tool_use_id"] == "toolu_0"
    assert read[0]["system"] != read[1]["system"] and read[0]["system"][0]["text"].startswith(
        "x-anthropic-billing-header:"
    )
