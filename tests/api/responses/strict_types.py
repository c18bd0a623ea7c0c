"""openai's types with extra fields forbidden, but for `toolwire` and for what Open Responses requires and OpenAI sends
without listing it; and a fold of events that reads their deltas alone.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from openai import BaseModel
from openai.types.responses import Response, ResponseStreamEvent
from openresponses_types import ResponseResource
from pydantic import TypeAdapter

_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
UNLISTED = frozenset({"toolwire", "store", "presence_penalty", "frequency_penalty"})
# Types that Open Responses does not have; of json_schema it takes no schema.
OPENAI_ALONE = ("custom", "namespace", "custom_tool_call", "compaction", "json_schema")
OUR_CODES = ("context_length_exceeded",)  # of `error.code`, which the types do not list


def check_response(sent: Mapping[str, Any]) -> None:
    """Raises AssertionError or pydantic's error for a body that openai's types, or Open Responses', do not have."""
    if not any(part["type"] in OPENAI_ALONE for part in (*sent["tools"], *sent["output"], sent["text"]["format"])):
        ResponseResource.model_validate(deepcopy(dict(sent)))
    sent = _listed(sent)
    check_no_extra(Response.model_validate(deepcopy(sent)), "response")


def check_event(sent: Mapping[str, Any]) -> None:
    """The same for an event."""
    sent = dict(sent)
    if "response" in sent:
        sent["response"] = _listed(sent["response"])
        if (sent["response"]["error"] or {}).get("code") in OUR_CODES:
            sent["response"]["error"] = {**sent["response"]["error"], "code": "server_error"}
    event = _EVENTS.validate_python(deepcopy(sent))
    assert event.type == sent["type"]
    check_no_extra(event, sent["type"])


def _listed(response: Mapping[str, Any]) -> dict[str, Any]:
    assert UNLISTED - {"toolwire"} <= set(response)
    return {key: value for key, value in response.items() if key not in UNLISTED}


def check_no_extra(value: Any, path: str) -> None:
    """Raises AssertionError for a field that the type of `value` or of a part of it does not have."""
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{path} has {set(value.model_extra or ())}, which {type(value).__name__} lacks"
        for name in value.model_fields_set:
            check_no_extra(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            check_no_extra(item, path)


ENDS = ("response.completed", "response.incomplete", "response.failed")
_TEXT_OF = {  # event of a delta -> the list of parts of its item, and the key of the text there
    "response.output_text.delta": ("content", "text"),
    "response.reasoning_text.delta": ("content", "text"),
    "response.reasoning_summary_text.delta": ("summary", "text"),
}


def fold_deltas(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items of the output from `output_item.added`, the parts' beginnings and the deltas; ids and texts only."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append(deepcopy(event["item"]))
            continue
        if "output_index" not in event:
            continue
        item = items[event["output_index"]]
        if kind == "response.content_part.added":
            item["content"].append(dict(event["part"]))
        elif kind == "response.reasoning_summary_part.added":
            item["summary"].append(dict(event["part"]))
        elif kind in _TEXT_OF:
            parts, key = _TEXT_OF[kind]
            index = event["summary_index" if parts == "summary" else "content_index"]
            item[parts][index][key] += event["delta"]
        elif kind == "response.function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "response.custom_tool_call_input.delta":
            item["input"] += event["delta"]
    return items


def without(items: Iterable[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Items without these keys, in their parts too."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in keys}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return [strip(dict(item)) for item in items]
