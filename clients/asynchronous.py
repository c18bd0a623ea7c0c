"""Many requests at once with asyncio: they share the server's batch, so ten take little longer than one."""

import asyncio

from openai import AsyncOpenAI

from clients.connect import options, server_of
from clients.example_tools import get_weather
from clients.functions import Toolbox

CITIES = ("Paris", "Rome", "Oslo", "Madrid", "Berlin", "Vienna", "Prague", "Dublin")


async def ask(client: AsyncOpenAI, model: str, city: str) -> str:
    """The call that a question about one city comes to."""
    reply = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"What is the weather in {city}?"}],
        tools=Toolbox.of([get_weather]).definitions,
        tool_choice="required",
    )
    calls = reply.choices[0].message.tool_calls or []
    return ", ".join(f"{call.function.name}({call.function.arguments})" for call in calls if call.type == "function")


async def ask_all(client: AsyncOpenAI, model: str) -> list[str]:
    """One answer a city, in their order."""
    async with client:
        return await asyncio.gather(*(ask(client, model, city) for city in CITIES))


def main() -> None:
    """python -m clients.asynchronous"""
    server = server_of(options(__doc__ or "").parse_args())
    for city, call in zip(CITIES, asyncio.run(ask_all(server.async_client(), server.model)), strict=True):
        print(f"{city}: {call}")


if __name__ == "__main__":
    main()
