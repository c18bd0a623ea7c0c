"""A KV cache that holds less than the model's context: the server says so everywhere, and plans every reply by it."""

import httpx
import pytest

from server.memory.shape import read_shape
from server.prompt.window import Window
from tests.live import live_server

HELD = 512


def test_what_the_cache_holds_is_the_context_that_clients_are_told_and_held_to() -> None:
    """With the model's own context told, agents would fill it and every long conversation would end in a refusal."""
    with live_server("--no-self-test", "--kv-cache-tokens", str(HELD)) as server:
        url = f"{server.url}/v1/chat/completions"
        assert f"{HELD:,} tokens" in server.output()
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        assert model["max_model_len"] == HELD
        assert httpx.get(f"{server.url}/v1/models/{model['id']}").json()["max_model_len"] == HELD
        assert httpx.post(f"{server.url}/tokenize", json={"prompt": "a"}).json()["max_model_len"] == HELD

        def ask(text: str, **fields: object) -> httpx.Response:
            body = {"model": model["id"], "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
            return httpx.post(url, json=body, timeout=60)

        long = ask("river " * 600)
        error = long.json()["error"]
        assert (long.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
        assert f"maximum context length is {HELD} tokens" in error["message"]
        for fields in ({"ignore_eos": True}, {"ignore_eos": True, "max_tokens": 4000}):  # cut to what is left
            reply = ask("river " * 100, **fields).json()
            assert reply["choices"][0]["finish_reason"] == "length"
            assert reply["usage"]["total_tokens"] == HELD


def test_the_window_follows_every_engine_and_never_exceeds_the_model() -> None:
    window = Window(4096)
    window.narrow(1000)
    assert window.limit == 1000
    window.narrow(1 << 20)  # started again, with more memory
    assert window.limit == 4096


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, 32768),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131_072),
        ({"type": "linear", "factor": 2}, 65_536),
    ],
)
def test_a_stretched_context_is_planned_for_in_full(rope: dict[str, object], positions: int) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100, "num_attention_heads": 4}
    config = {**sizes, "num_hidden_layers": 2, "max_position_embeddings": 32768, "rope_scaling": rope}
    assert read_shape(config).max_positions == positions
