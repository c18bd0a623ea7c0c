"""A server whose model is one GGUF file."""

import json

from openai.types.chat import ChatCompletionToolParam

from tests.gguf.written import gguf_checkpoint
from tests.live import live_server

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_server_calls_tools_with_the_model_of_a_file() -> None:
    """Both processes read the file: prompts and grammars have the same ids."""
    with live_server("--model", str(gguf_checkpoint("qwen3") / "model.gguf"), "--kv-cache-tokens", "4096") as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["model"]
        reply = client.chat.completions.create(
            model="model",
            messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
            tools=[WEATHER],
            tool_choice="required",
            seed=1,
        )
        calls = reply.choices[0].message.tool_calls
        assert calls and calls[0].type == "function" and calls[0].function.name == "get_weather"
        assert json.loads(calls[0].function.arguments)["city"] in ("Paris", "Oslo")
