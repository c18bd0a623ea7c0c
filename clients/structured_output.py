"""Structured output: the JSON Schema of a pydantic model constrains every token of the reply."""

from typing import Literal

from pydantic import BaseModel

from clients.connect import options, server_of


class Trip(BaseModel):
    """The fields to extract from a sentence."""

    city: str
    days: int
    by: Literal["train", "plane", "car"]


def main() -> None:
    """python -m clients.structured_output"""
    server = server_of(options(__doc__ or "").parse_args())
    reply = server.client().chat.completions.parse(
        model=server.model,
        messages=[{"role": "user", "content": "I go to Vienna for 3 days by train."}],
        response_format=Trip,
    )
    trip = reply.choices[0].message.parsed
    if trip is None:
        raise SystemExit(f"the reply ended early: {reply.choices[0].finish_reason}")
    print(f"city={trip.city!r} days={trip.days} by={trip.by}")


if __name__ == "__main__":
    main()
