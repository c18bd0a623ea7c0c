"""Completions: a prompt continued as it stands, in every form, whole and as a stream."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types import Completion

from server.checkpoint.checkpoint import Checkpoint
from server.messages import Delta, Generate, TokenLogprob
from tests.api.conftest import MODEL, Serve, Served, events_of
from tests.backends.scripted import Script, deltas

IdsOf = Callable[[str], list[int]]


async def send(served: Served, **fields: Any) -> httpx.Response:
    return await served.http.post("/v1/completions", json={"model": MODEL, "prompt": "Once", **fields})


def validated(body: dict[str, Any]) -> dict[str, Any]:
    """A body or chunk, held to the SDK's type; only a chunk's finish reason may be missing."""
    choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in body["choices"]]
    read = Completion.model_validate({**body, "choices": choices})
    assert not set(read.model_extra or {}) - {"toolwire"} and not any(choice.model_extra for choice in read.choices)
    return body


def echo_script(checkpoint: Checkpoint) -> Callable[[Generate], Script]:
    """Each request is answered by its own prompt, backwards."""
    return lambda request: deltas([*reversed(request.token_ids), checkpoint.stop_ids[0]])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("ab cd", ["ab cd"]), (["ab", "cd ef"], ["ab", "cd ef"]), ("IDS", ["ab cd"]), ("LISTS", ["ab cd", "ef"])],
)
async def test_every_form_of_prompt(serve: Serve, ids_of: IdsOf, prompt: Any, texts: list[str]) -> None:
    prompt = {"IDS": ids_of("ab cd"), "LISTS": [ids_of("ab cd"), ids_of("ef")]}.get(str(prompt), prompt)
    async with serve(deltas(ids_of(" end"), "length")) as served:
        body = validated((await send(served, prompt=prompt, n=2)).json())
        asked = [one.token_ids for one in served.backend.asked]
    assert asked == [ids_of(text) for text in texts for _ in range(2)]
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(texts)))
    assert {choice["text"] for choice in body["choices"]} == {" end"}
    assert body["usage"]["prompt_tokens"] == sum(len(ids_of(text)) for text in texts)
    assert body["choices"][0]["finish_reason"] == "length"


async def test_text_from_outside_never_becomes_a_control_token(
    serve: Serve, ids_of: IdsOf, checkpoint: Checkpoint
) -> None:
    control = {token.id for token in checkpoint.control_tokens}
    text = "".join(token.text for token in checkpoint.control_tokens)
    async with serve(deltas(ids_of("x"), "length")) as served:
        await send(served, prompt=text)
        await send(served, prompt=text, suffix=text)
        plain, filled = (one.token_ids for one in served.backend.asked)
    assert not control & set(plain)
    fill = [checkpoint.marker_ids[f"<|fim_{name}|>"] for name in ("prefix", "suffix", "middle")]
    assert [token for token in filled if token in control] == fill


async def test_a_suffix_is_filled_in_by_the_models_tokens(serve: Serve, ids_of: IdsOf, checkpoint: Checkpoint) -> None:
    ids = checkpoint.marker_ids
    async with serve(deltas(ids_of("x"), "length")) as served:
        await send(served, prompt="def f():\n", suffix="\n    return 1")
        (asked,) = served.backend.asked
    expected = [ids["<|fim_prefix|>"], *ids_of("def f():\n"), ids["<|fim_suffix|>"], *ids_of("\n    return 1")]
    assert asked.token_ids == [*expected, ids["<|fim_middle|>"]]
    assert {ids["<|fim_pad|>"], ids["<|file_sep|>"], *checkpoint.stop_ids} <= set(asked.stop_ids)


async def test_a_stream_folded_is_the_whole(serve: Serve, ids_of: IdsOf, checkpoint: Checkpoint) -> None:
    fields: dict[str, Any] = {"prompt": ["ab cd END ef", "é 🌊"], "n": 2, "echo": True, "stop": "END"}
    async with serve(echo_script(checkpoint)) as served:
        whole = validated((await send(served, **fields)).json())
        options = {"include_usage": True}
        stream = events_of((await send(served, stream=True, stream_options=options, **fields)).text)
    chunks = [validated(json.loads(event)) for event in stream]
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert [choice["text"] for choice in whole["choices"]] == list(texts.values())
    assert texts[0].startswith("ab cd END ef ef") and texts[2].startswith("é 🌊")
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
    assert {choice["finish_reason"] for choice in whole["choices"]} == {"stop"}


async def test_logprobs_in_the_old_shape(serve: Serve, ids_of: IdsOf) -> None:
    ids = ids_of("Hello big world")
    scores = [TokenLogprob(one, -0.5, ((one, -0.5), (ids[0], -1.5))) for one in ids]
    script = [Delta("", cached=0), Delta("", ids, logprobs=scores, finish="length")]
    async with serve(script) as served:
        body = validated((await send(served, logprobs=2)).json())
        assert served.backend.asked[0].sampling.num_logprobs == 2
    logprobs = body["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == "Hello big world" == body["choices"][0]["text"]
    assert logprobs["token_logprobs"] == [-0.5] * len(ids)
    assert logprobs["text_offset"] == [0, 5, 9]
    assert logprobs["top_logprobs"][1] == {" big": -0.5, "Hello": -1.5}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "an empty prompt": ({"prompt": ""}, "prompt[0]"),
    "an empty list": ({"prompt": []}, "prompt"),
    "a list of lists of texts": ({"prompt": [["a"]]}, "prompt[0]"),
    "an unknown id": ({"prompt": [10**7]}, "prompt"),
    "a negative id": ({"prompt": [-1]}, "prompt"),
    "best_of": ({"best_of": 2}, "best_of"),
    "too many choices": ({"prompt": ["a"] * 65, "n": 2}, "n"),
    "echo with logprobs": ({"echo": True, "logprobs": 0}, "echo"),
    "a suffix of ids": ({"prompt": [1], "suffix": "a"}, "suffix"),
    "too long": ({"prompt": "word " * 50000}, "prompt"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refusals_in_openais_words(serve: Serve, name: str) -> None:
    fields, param = REFUSED[name]
    async with serve() as served:
        response = await send(served, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error


async def test_strict_refuses_unknown_keys(serve: Serve) -> None:
    async with serve(strict=True) as served:
        response = await send(served, mystery=1)
    assert response.json()["error"]["param"] == "mystery"
