"""The server end to end: the start-up message, the curl command it prints, the openai SDK, starts that are refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live import ROOT, Live

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]


def test_the_printed_curl_can_be_pasted_and_calls_a_tool(live: Live) -> None:
    text = live.output()
    for label in ("URL", "Model", "Device", "Context", "KV cache"):
        assert label in text
    curl = text[text.index("curl ") :].split("}'\n")[0] + "}'"
    reply = subprocess.run(["bash", "-c", curl + " -sS"], capture_output=True, text=True, timeout=60)
    message = json.loads(reply.stdout)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "get_weather"
    assert "Paris" in message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_the_sdk_gets_a_tool_call_whole_and_streamed_alike(live: Live, choice: object) -> None:
    request: dict[str, Any] = {"model": "toolwire-demo", "messages": QUESTION, "tools": [WEATHER], "temperature": 0}
    request["tool_choice"] = choice
    whole = live.client().chat.completions.create(**request).choices[0]
    assert whole.finish_reason == "tool_calls"
    call = whole.message.tool_calls[0].function
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["unit"] in ("celsius", "fahrenheit")
    with live.client().chat.completions.stream(**request) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    assert streamed.message.tool_calls[0].function.arguments == call.arguments


def test_a_taken_port_is_one_line(live: Live) -> None:
    port = live.url.rsplit(":", 1)[1]
    ended = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", port], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 2
    assert f"127.0.0.1:{port}" in ended.stderr and "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_that_does_not_fit_is_refused_before_loading(tmp_path: Path) -> None:
    """Weights of a terabyte by their headers: the server must say so instead of being killed while it loads."""
    for file in (ROOT / "server" / "demo_model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(hidden_size=65536, intermediate_size=262144, num_hidden_layers=200)
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = 1 << 40
    header = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    )
    with (tmp_path / "model.safetensors").open("wb") as file_out:
        file_out.write(len(header).to_bytes(8, "little") + header.encode())
        file_out.truncate(8 + len(header) + size)
    ended = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "does not fit" in ended.stderr and "weights" in ended.stderr
    assert "Traceback" not in ended.stderr
