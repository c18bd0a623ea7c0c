"""Lists of items, a page at a time."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, UnsetType

from server.api.body import bad
from server.api.chat.wire import Notes
from server.api.openapi.operations import ref
from server.api.responses.items import InputItem
from server.api.responses.memory import no_such

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
ITEM_SCHEMA: dict[str, Any] = {"anyOf": [ref(kind) for kind in get_args(InputItem)]}  # kept items have an `id` as well
EXAMPLE_ITEM: Mapping[str, Any] = {
    "id": "msg_b3Kd92mXqLw07TzVnRfYpGhA",
    "type": "message",
    "role": "user",
    "status": "completed",
    "content": [{"type": "input_text", "text": "What is the weather in Paris?"}],
}


class ItemList(msgspec.Struct, tag_field="object", tag="list"):
    """A page of items. The ids are "" on a page without any."""

    data: Sequence[Annotated[Mapping[str, Any], msgspec.Meta(extra_json_schema=ITEM_SCHEMA)]]
    first_id: str
    last_id: str
    has_more: bool
    toolwire: Notes | UnsetType = UNSET


def page_of(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> ItemList:
    """The page that `limit`, `order` (newest first by default) and `after` (an id) name.

    Raises RequestRefused for values out of range (400) and an unknown `after` (404).
    """
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= MAX_LIMIT):
        raise bad(f"Invalid 'limit': expected an integer from 1 to {MAX_LIMIT}.", "limit", "invalid_value")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad(f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'.", "order", "invalid_value")
    ordered = list(items) if order == "asc" else list(reversed(items))
    after = query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise no_such("Item", after)
        ordered = ordered[places[0] + 1 :]
    page = ordered[: int(limit)]
    ids = [str(item["id"]) for item in page] or [""]
    return ItemList(page, ids[0], ids[-1], len(ordered) > len(page))
