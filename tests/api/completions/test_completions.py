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


def echo_scores(checkpoint: Checkpoint, reply: list[int]) -> Callable[[Generate], Script]:
    """Scores of every prompt in pieces of three ids, then this reply and the stop id, scored too."""

    def write(request: Generate) -> Script:
        assert request.prompt_logprobs == request.sampling.num_logprobs == 1
        scores = [TokenLogprob(one, -1.0, ((request.token_ids[0], -0.5),)) for one in request.token_ids[1:]]
        pieces = [Delta("", prompt_logprobs=scores[at : at + 3]) for at in range(0, len(scores), 3)]
        if request.sampling.max_tokens == 0:
            return [Delta("", cached=0), *pieces, Delta("", finish="length")]
        ids = [*reply, checkpoint.stop_ids[0]]
        end = Delta("", ids, logprobs=[TokenLogprob(one, -2.0, ((one, -2.0),)) for one in ids], finish="stop")
        return [Delta("", cached=0), *pieces, end]

    return write


@pytest.mark.parametrize("max_tokens", [0, 4])
async def test_an_echoed_prompt_has_logprobs_whole_and_streamed(
    serve: Serve, ids_of: IdsOf, checkpoint: Checkpoint, max_tokens: int
) -> None:
    """Harnesses count the scores: each id has its own, the first, control tokens and the last too."""
    prompts = [[*ids_of("ab 🌊 cd"), checkpoint.marker_ids["<|im_end|>"]], ids_of("ef")]
    fields: dict[str, Any] = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": max_tokens, "n": 2}
    async with serve(echo_scores(checkpoint, ids_of(" end"))) as served:
        whole = (await send(served, **fields)).json()  # the SDK's type knows no null for the first token
        stream = [json.loads(one) for one in events_of((await send(served, stream=True, **fields)).text)]
    for choice in whole["choices"]:
        prompt, logprobs = prompts[choice["index"] // 2], choice["logprobs"]
        num_written = len(ids_of(" end")) + 1 if max_tokens else 0
        assert logprobs["token_logprobs"] == [None, *[-1.0] * (len(prompt) - 1), *[-2.0] * num_written]
        assert choice["text"] == checkpoint.tokenizer.decode(prompt, skip_special_tokens=False) + " end" * bool(
            max_tokens
        )
        assert logprobs["top_logprobs"][0] is None and len(logprobs["tokens"]) == len(logprobs["text_offset"])
        parts = [one["logprobs"] for chunk in stream for one in chunk["choices"] if one["index"] == choice["index"]]
        assert {key: [item for part in parts for item in part[key]] for key in logprobs} == logprobs
    first = whole["choices"][0]
    wave = first["text"].index("🌊") - 1  # its first token has the space before it
    offsets = first["logprobs"]["text_offset"]
    assert offsets[:2] == [0, 2] and first["text"].index(" cd") in offsets and offsets.count(wave + 1) >= 1
    assert first["logprobs"]["top_logprobs"][1] == {"ab": -0.5, first["logprobs"]["tokens"][1]: -1.0}
    assert first["logprobs"]["tokens"][len(prompts[0]) - 1] == "<|im_end|>"
    assert whole["usage"]["completion_tokens"] == (4 * (len(ids_of(" end")) + 1) if max_tokens else 0)
    assert first["finish_reason"] == ("stop" if max_tokens else "length")


async def test_an_echoed_prompt_may_fill_the_window(serve: Serve, checkpoint: Checkpoint) -> None:
    """Without a reply no place needs to be left for one."""
    prompt = [5] * checkpoint.max_model_len
    async with serve(echo_scores(checkpoint, [])) as served:
        fits = await send(served, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
        refused = await send(served, prompt=prompt, echo=True, logprobs=1, max_tokens=1)
    assert (fits.status_code, refused.status_code) == (200, 400)
    assert len(fits.json()["choices"][0]["logprobs"]["tokens"]) == checkpoint.max_model_len


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "an empty prompt": ({"prompt": ""}, "prompt[0]"),
    "an empty list": ({"prompt": []}, "prompt"),
    "a list of lists of texts": ({"prompt": [["a"]]}, "prompt[0]"),
    "an unknown id": ({"prompt": [10**7]}, "prompt"),
    "a negative id": ({"prompt": [-1]}, "prompt"),
    "best_of": ({"best_of": 2}, "best_of"),
    "too many choices": ({"prompt": ["a"] * 65, "n": 2}, "n"),
    "no reply and no echo": ({"max_tokens": 0}, "max_tokens"),
    "too many logprobs": ({"prompt": [[1] * 4000] * 8, "n": 4, "echo": True, "logprobs": 20}, "logprobs"),
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
