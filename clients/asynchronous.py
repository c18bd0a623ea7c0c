"""Concurrent requests with asyncio: the server batches them, so that eight take little longer than one."""

import asyncio

from openai import AsyncOpenAI

from clients.connect import options, server_of
from clients.example_tools import get_weather
from clients.functions import Toolbox

CITIES = ("Paris", "Rome", "Oslo", "Madrid", "Berlin", "Vienna", "Prague", "Dublin")


async def request_call(client: AsyncOpenAI, model: str, city: str) -> str:
    """Return the tool call that the model makes for a question about one city."""
    reply = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"What is the weather in {city}?"}],
        tools=Toolbox.of([get_weather]).definitions,
        tool_choice="required",
    )
    calls = reply.choices[0].message.tool_calls or []
    return ", ".join(f"{call.function.name}({call.function.arguments})" for call in calls if call.type == "function")


async def request_calls(client: AsyncOpenAI, model: str) -> list[str]:
    """Return one call a city, in the order of `CITIES`."""
    async with client:
        return await asyncio.gather(*(request_call(client, model, city) for city in CITIES))


def main() -> None:
    """python -m clients.asynchronous"""
    server = server_of(options(__doc__ or "").parse_args())
    for city, call in zip(CITIES, asyncio.run(request_calls(server.async_client(), server.model)), strict=True):
        print(f"{city}: {call}")


if __name__ == "__main__":
    main()
