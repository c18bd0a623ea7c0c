"""Tools, tool choices and calls in the forms of other APIs, rewritten to that of the surface that they came by.

    Chat Completions    {"type": "function", "function": {"name": "f", "parameters": {}}}
    Responses           {"type": "function", "name": "f", "parameters": {}}
    Messages            {"name": "f", "input_schema": {}}

What is in none of these forms is left alone: its surface says what is wrong with it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from server.notes import Note

CALL_IDS = ("call_id", "id")  # an item of Responses has an id of its own beside that of the call
RESULT_IDS = ("tool_call_id", "call_id", "tool_use_id", "id")
SCHEMAS = ("parameters", "input_schema", "inputSchema")  # the last is MCP's own
Form = Mapping[str, Any]
Rewrite = Callable[[Form], Form]


def tools_in_chat_form(body: dict[str, Any]) -> Iterator[Note]:
    """Rewrite the tools and the choice of a Chat Completions request; yield notes on what was changed."""
    yield from _rewrite_tools(body, _chat_tool)
    yield from _rewrite_choice(body, _chat_choice, words=True)


def tools_in_responses_form(body: dict[str, Any]) -> Iterator[Note]:
    """The same of a request for a response."""
    yield from _rewrite_tools(body, _responses_tool)
    yield from _rewrite_choice(body, _responses_choice, words=True)


def tools_in_messages_form(body: dict[str, Any]) -> Iterator[Note]:
    """The same of a Messages request."""
    yield from _rewrite_tools(body, _messages_tool)
    yield from _rewrite_choice(body, _messages_choice, words=False)


def history_in_messages_form(body: dict[str, Any]) -> Iterator[Note]:
    """Rewrite calls and results as Chat Completions has them to the blocks of a Messages request; yield a note."""
    sent = body.get("messages")
    if not isinstance(sent, list):
        return
    messages = [_messages_message(one) if isinstance(one, Mapping) else one for one in sent]
    changed = [place for place, message in enumerate(messages) if message is not sent[place]]
    if changed:
        body["messages"] = messages
        text = f"Calls or results in the form of another API were read, in messages: {len(changed)}."
        yield Note("form", f"messages[{changed[0]}]", text)


def _messages_message(message: Form) -> Form:
    if message.get("role") == "tool":
        call_id = id_in(message, RESULT_IDS)
        result = {"type": "tool_result", "tool_use_id": call_id, "content": message.get("content")}
        return {"role": "user", "content": [result]}
    calls, content = message.get("tool_calls"), message.get("content")
    calls = [calls] if isinstance(calls, Mapping) else calls
    if message.get("role") != "assistant" or not isinstance(calls, list) or not calls:
        return message
    if not all(isinstance(call, Mapping) for call in calls):
        return message
    blocks = content if isinstance(content, list) else [content] if content else []
    own = [block.get("id") for block in blocks if isinstance(block, Mapping) and block.get("type") == "tool_use"]
    uses = [use for use in map(_tool_use, calls) if use["id"] is None or use["id"] not in own]
    return {"role": "assistant", "content": [*blocks, *uses]}


def id_in(sent: Form, names: Iterable[str]) -> Any:
    """The id of a call, or of a result's call, under the first of these names that has one."""
    return next((sent[name] for name in names if sent.get(name) not in (None, "")), None)


def _tool_use(call: Form) -> dict[str, Any]:
    function = call.get("function")
    inner = function if isinstance(function, Mapping) else call
    given = next((inner[key] for key in ("arguments", "args", "input") if inner.get(key) is not None), None)
    return {"type": "tool_use", "id": id_in(call, CALL_IDS), "name": inner.get("name"), "input": given}


def _rewrite_tools(body: dict[str, Any], rewrite: Rewrite) -> Iterator[Note]:
    sent = body.get("tools")
    if not isinstance(sent, list):
        return
    tools = [rewrite(tool) if isinstance(tool, Mapping) else tool for tool in sent]
    changed = [place for place, tool in enumerate(tools) if tool is not sent[place]]
    if changed:
        body["tools"] = tools
        yield Note("form", f"tools[{changed[0]}]", f"Tools in the form of another API were read: {len(changed)}.")


def _rewrite_choice(body: dict[str, Any], rewrite: Rewrite, words: bool) -> Iterator[Note]:
    """`words`: a choice that names no tool is a word, not an object."""
    sent = body.get("tool_choice")
    choice = {"type": sent} if isinstance(sent, str) else sent
    if not isinstance(choice, Mapping):
        return
    rewritten = rewrite(choice)
    own = rewritten["type"] if words and set(rewritten) == {"type"} else rewritten
    if rewritten is choice or own == sent:
        return
    body["tool_choice"] = own
    if words and choice.get("disable_parallel_tool_use") is True:
        body.setdefault("parallel_tool_calls", False)
    yield Note("form", "tool_choice", "A choice of tools in the form of another API was read.")


def _flat(tool: Form) -> dict[str, Any] | None:
    """The tool as the Responses API has it; None where it is a tool in no form known here."""
    kind = tool.get("type")
    if kind not in (None, "function", "custom"):
        return None
    inner = tool.get(kind) if kind is not None else None
    holder = inner if isinstance(inner, Mapping) else tool
    if not isinstance(holder.get("name"), str):
        return None
    flat: dict[str, Any] = {
        key: holder[key] for key in ("name", "description", "strict") if holder.get(key) is not None
    }
    schema = next((holder[key] for key in SCHEMAS if holder.get(key) is not None), None)
    if kind == "custom" and schema is None:
        format_ = holder.get("format")
        grammar = format_.get("grammar") if isinstance(format_, Mapping) else None
        if isinstance(grammar, Mapping):
            format_ = {"type": "grammar", **grammar}
        return {"type": "custom", **flat} | ({} if format_ is None else {"format": format_})
    return {"type": "function", **flat} | ({} if schema is None else {"parameters": schema})


def _chat_tool(tool: Form) -> Form:
    kind = tool.get("type")
    if (isinstance(kind, str) and kind in tool) or (flat := _flat(tool)) is None:
        return tool
    inner = {key: value for key, value in flat.items() if key != "type"}
    format_ = inner.get("format")
    if isinstance(format_, Mapping) and format_.get("type") == "grammar" and "grammar" not in format_:
        grammar = {key: value for key, value in format_.items() if key != "type"}
        inner["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": flat["type"], flat["type"]: inner}


def _responses_tool(tool: Form) -> Form:
    kind = tool.get("type")
    is_own = kind is not None and "name" in tool and not {"input_schema", "inputSchema"} & tool.keys()
    flat = None if is_own else _flat(tool)
    return tool if flat is None else flat


def _messages_tool(tool: Form) -> Form:
    is_own = tool.get("type") != "function" and "name" in tool and not {"parameters", "inputSchema"} & tool.keys()
    flat = None if is_own else _flat(tool)
    if flat is None or flat["type"] == "custom":
        return tool
    named: dict[str, Any] = {key: flat[key] for key in ("name", "description", "strict") if key in flat}
    return {**named, "input_schema": flat.get("parameters", {"type": "object", "properties": {}})}


def _mode(sent: Form) -> str | None:
    """`auto`, `none` or `required`; None where the choice names tools, or is none known here."""
    kind = sent.get("type")
    return {"auto": "auto", "none": "none", "required": "required", "any": "required"}.get(str(kind))


def _named(sent: Form) -> tuple[str, str] | None:
    """Kind and name of the one tool that is chosen."""
    kind = sent.get("type")
    if kind not in (None, "tool", "function", "custom"):
        return None
    kind = "custom" if kind == "custom" else "function"
    inner = sent.get(kind)
    name = inner.get("name") if isinstance(inner, Mapping) else sent.get("name")
    return (kind, name) if isinstance(name, str) else None


def _listed(sent: Form) -> tuple[Any, list[tuple[str, str]]] | None:
    """Mode and tools of `allowed_tools`."""
    if sent.get("type") != "allowed_tools":
        return None
    inner = sent.get("allowed_tools")
    holder = inner if isinstance(inner, Mapping) else sent
    tools = holder.get("tools")
    names = [_named(one) if isinstance(one, Mapping) else None for one in tools] if isinstance(tools, list) else [None]
    known = [one for one in names if one is not None]
    return (holder.get("mode", "auto"), known) if len(known) == len(names) else None


def _chat_choice(sent: Form) -> Form:
    if isinstance(sent.get(str(sent.get("type"))), Mapping):
        return sent
    if (mode := _mode(sent)) is not None:
        return {"type": mode}
    if (listed := _listed(sent)) is not None:
        tools = [{"type": kind, kind: {"name": name}} for kind, name in listed[1]]
        return {"type": "allowed_tools", "allowed_tools": {"mode": listed[0], "tools": tools}}
    if (named := _named(sent)) is not None:
        return {"type": named[0], named[0]: {"name": named[1]}}
    return sent


def _responses_choice(sent: Form) -> Form:
    if (mode := _mode(sent)) is not None:
        return {"type": mode}
    if (listed := _listed(sent)) is not None:
        own = sent.get("tools")
        is_own = isinstance(own, list) and all(isinstance(one, Mapping) and "name" in one for one in own)
        tools = [{"type": kind, "name": name} for kind, name in listed[1]]
        return sent if is_own else {"type": "allowed_tools", "mode": listed[0], "tools": tools}
    if ("name" in sent and sent.get("type") in ("function", "custom")) or (named := _named(sent)) is None:
        return sent
    return {"type": named[0], "name": named[1]}


def _messages_choice(sent: Form) -> Form:
    if sent.get("type") in ("auto", "any", "none", "tool"):
        return dict(sent)  # a word becomes an object
    if _mode(sent) == "required":
        return {**sent, "type": "any"}
    named = _named(sent)
    return sent if named is None else {"type": "tool", "name": named[1]}
