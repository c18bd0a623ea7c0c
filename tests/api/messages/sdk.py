"""The Anthropic SDK as the letter of replies: unknown fields are forbidden, and streams are folded by it."""

import json
from typing import Any

from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
OURS = {"toolwire"}


def validated(kind: TypeAdapter[Any] | type[BaseModel], sent: Any) -> Any:
    """`sent` as an object of the SDK. Fails where a field is missing, of another type, or unknown, at any depth."""
    read = kind.validate_python(sent) if isinstance(kind, TypeAdapter) else kind.model_validate(sent, by_alias=True)
    assert unknown_fields(read) == []
    return read


def unknown_fields(value: Any, path: str = "") -> list[str]:
    """Paths of the fields that the SDK's types do not have."""
    if isinstance(value, list):
        return [found for i, item in enumerate(value) for found in unknown_fields(item, f"{path}[{i}]")]
    if not isinstance(value, BaseModel):
        return []
    extra = sorted(set(value.model_extra or {}) - OURS)
    inner = [(name, getattr(value, name)) for name in type(value).model_fields]
    return [f"{path}.{name}" for name in extra] + [
        found for name, item in inner for found in unknown_fields(item, f"{path}.{name}")
    ]


def stream_events(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events, each named after its type; pings are left out."""
    events = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events += [] if event["type"] == "ping" else [event]
    return events


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole message as the SDK adds it up."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        snapshot = accumulate_event(event=validated(EVENT, event), current_snapshot=snapshot, json_bufs=buffers)
    return dict(json.loads(snapshot.to_json(exclude_unset=False)))


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """A body, validated, in the form of `folded`."""
    return dict(json.loads(validated(Message, body).to_json(exclude_unset=False)))


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what differs from reply to reply, and without what the SDK does not add up."""
    blocks = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return {**message, "id": "", "content": blocks, "toolwire": None}
