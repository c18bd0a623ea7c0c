"""Streamed tool call: the SDK's stream events, with the argument deltas as they arrive."""

from clients.connect import options, server_of
from clients.example_tools import get_weather
from clients.functions import Toolbox


def main() -> None:
    """python -m clients.streaming"""
    server = server_of(options(__doc__ or "").parse_args())
    with server.client().chat.completions.stream(
        model=server.model,
        messages=[{"role": "user", "content": "What is the weather in Lisbon?"}],
        tools=Toolbox.of([get_weather]).definitions,
        tool_choice="required",
        stream_options={"include_usage": True},
    ) as stream:
        for event in stream:
            if event.type == "content.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "tool_calls.function.arguments.delta":
                print(event.arguments_delta, end="|", flush=True)
            elif event.type == "tool_calls.function.arguments.done":
                print(f"\ncall: {event.name}({event.arguments})")
        final = stream.get_final_completion()
    if final.usage is not None:
        print(f"{final.usage.prompt_tokens} tokens read, {final.usage.completion_tokens} written")


if __name__ == "__main__":
    main()
