"""One tool call: send a request, run the function, return its result, read the answer."""

from typing import Any

from clients.connect import options, server_of
from clients.example_tools import get_weather
from clients.functions import Toolbox


def main() -> None:
    """python -m clients.tool_call"""
    server = server_of(options(__doc__ or "").parse_args())
    client, tools = server.client(), Toolbox.of([get_weather])
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]

    reply = client.chat.completions.create(model=server.model, messages=messages, tools=tools.definitions)
    message = reply.choices[0].message
    messages.append(message)
    for call in message.tool_calls or ():
        if call.type == "function":
            result = tools.call(call.function.name, call.function.arguments)
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    reply = client.chat.completions.create(model=server.model, messages=messages, tools=tools.definitions)
    print(reply.choices[0].message.content)


if __name__ == "__main__":
    main()
