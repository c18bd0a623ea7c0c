"""Parallel tool calls: the calls of one reply run in threads, and their results are returned in one request."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clients.connect import options, server_of
from clients.example_tools import get_time, get_weather
from clients.functions import Toolbox


def main() -> None:
    """python -m clients.parallel_calls"""
    server = server_of(options(__doc__ or "").parse_args())
    client, tools = server.client(), Toolbox.of([get_weather, get_time])
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]

    reply = client.chat.completions.create(
        model=server.model, messages=messages, tools=tools.definitions, parallel_tool_calls=True
    )
    message = reply.choices[0].message
    calls = [call for call in message.tool_calls or () if call.type == "function"]
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda call: tools.call(call.function.name, call.function.arguments), calls))
    messages.append(message)
    for call, result in zip(calls, results, strict=True):
        print(f"{call.id}: {call.function.name}({call.function.arguments}) -> {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    reply = client.chat.completions.create(model=server.model, messages=messages, tools=tools.definitions)
    print(reply.choices[0].message.content)


if __name__ == "__main__":
    main()
