"""One call and its answer through litellm's proxy, by each of its surfaces; called by `python -m tests.agents litellm`.

The proxy is the `litellm` of the PATH; it forwards to the server. Prints the answer, the same by all three.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from benchmarks.servers import free_port

START_TIMEOUT_S = 90
KEY = f"sk-{secrets.token_hex(32)}"  # the proxy starts with no weaker one
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
FUNCTION: dict[str, Any] = {"name": "bash", "description": "Run a command", "parameters": SCHEMA}


def run_command(arguments: str) -> str:
    """The output of a call."""
    return subprocess.run(json.loads(arguments)["command"], shell=True, capture_output=True, text=True).stdout


def by_chat(url: str, model: str, question: str) -> str:
    """The answer by Chat Completions."""
    messages: list[Any] = [{"role": "user", "content": question}]
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        for _ in range(3):
            message = client.chat.completions.create(model=model, messages=messages, tools=tools).choices[0].message
            if not message.tool_calls:
                break
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls:
                assert call.type == "function"
                output = run_command(call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
    return message.content or ""


def by_responses(url: str, model: str, question: str) -> str:
    """The answer by Responses."""
    items: list[Any] = [{"role": "user", "content": question}]
    tools: list[Any] = [{"type": "function", **FUNCTION}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        for _ in range(3):
            response = client.responses.create(model=model, input=items, tools=tools, store=False)
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                break
            items += [item.model_dump(exclude_none=True) for item in response.output]
            for call in calls:
                output = run_command(call.arguments)
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": output})
    return response.output_text


def by_messages(url: str, model: str, question: str) -> str:
    """The answer by Messages."""
    messages: list[Any] = [{"role": "user", "content": question}]
    tools: list[Any] = [{"name": "bash", "description": "Run a command", "input_schema": SCHEMA}]
    with anthropic.Anthropic(base_url=url, api_key=KEY) as client:
        for _ in range(3):
            with client.messages.stream(model=model, max_tokens=500, messages=messages, tools=tools) as stream:
                reply = stream.get_final_message()
            results: list[Any] = [
                {"type": "tool_result", "tool_use_id": block.id, "content": run_command(json.dumps(block.input))}
                for block in reply.content
                if block.type == "tool_use"
            ]
            if not results:
                break
            messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]
    return "".join(block.text for block in reply.content if block.type == "text")


def main() -> None:
    """Start the proxy, ask by each surface, stop it."""
    target, model, question = sys.argv[1:]
    entry = {
        "model_name": model,
        "litellm_params": {"model": f"openai/{model}", "api_base": f"{target}/v1", "api_key": "any"},
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": [entry]}))
        url = f"http://127.0.0.1:{(port := free_port())}"
        command = ["litellm", "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
        own = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with subprocess.Popen(
            command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        ) as proxy:
            try:
                _wait_for(url)
                answers = [ask(url, model, question) for ask in (by_chat, by_responses, by_messages)]
            finally:
                proxy.terminate()
    if len(set(answers)) != 1:
        sys.exit(f"the answers differ: {answers}")
    print(answers[0])


def _wait_for(url: str) -> None:
    """Raises TimeoutError where the proxy does not start."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{url}/health/liveliness").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise TimeoutError(f"no proxy at {url} after {START_TIMEOUT_S} s")


if __name__ == "__main__":
    main()
