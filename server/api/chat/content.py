"""Content of messages as other clients write it: texts and thoughts under other names, results that are no text."""

import json
from collections.abc import Callable
from typing import Any

OTHER_MODALITIES = (
    "image_url", "input_audio", "file", "image", "video", "video_url", "audio", "audio_url", "input_image",
    "input_file",
)  # fmt: skip
# Members of parts that hold another modality; an object without them is data that has a `type` of its own.
PAYLOADS = (*OTHER_MODALITIES, "source", "data", "blob", "file_id", "file_data", "file_url")
THOUGHT_KINDS = (
    "thinking", "reasoning", "thought", "think", "redacted_thinking", "redacted_reasoning", "reasoning_text",
    "reasoning_content", "reasoning.text", "reasoning.summary", "reasoning.encrypted", "summary_text",
)  # fmt: skip
THOUGHT_NAMES = (
    "thinking", "reasoning", "thought", "think", "text", "content", "reasoning_content", "reasoning_text",
    "reasoningText", "summary",
)  # fmt: skip
TEXT_KINDS = ("text", "input_text", "output_text")
CALL_KINDS = ("tool_use", "tool_call", "tool-call")  # of Anthropic, LangChain and the AI SDK
RESULT_KINDS = ("tool_result", "tool-result")
CALL_IDS = ("id", "toolCallId", "call_id")
RESULT_IDS = ("tool_use_id", "toolCallId", "tool_call_id", "call_id")
ERROR_HEAD = 100  # characters of a failed call's result that usually say that it failed


def thought_in(value: Any) -> str:
    """The text of a thought: a string, a part under any of its usual names, or a list of such."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(thought_in(item) for item in value)
    if isinstance(value, dict):
        return next((text for name in THOUGHT_NAMES if (text := thought_in(value.get(name)))), "")
    return ""


def is_thought(part: Any) -> bool:
    """Whether a part is a thought, by its type or, as Gemini marks them, by `thought: true`."""
    if not isinstance(part, dict):
        return False
    return str(part.get("type")).lower().replace("-", "_") in THOUGHT_KINDS or part.get("thought") is True


def plain_parts(content: Any, thoughts: bool = False) -> Any:
    """The parts of a content that is no string, one that stands alone included, in OpenAI's form; null is none.

    With `thoughts` each thought is a part `thinking`. What can be no content is left alone.
    """
    if not isinstance(content, list | dict):
        return content
    parts = [part for part in (content if isinstance(content, list) else [content]) if part is not None]
    return [_thought_part(part) if thoughts and is_thought(part) else plain_part(part) for part in parts]


def is_call(part: Any) -> bool:
    """Whether a part is a call, in Anthropic's form or that of a framework."""
    return isinstance(part, dict) and part.get("type") in CALL_KINDS and bool({"name", "toolName"} & part.keys())


def is_result(part: Any) -> bool:
    """Whether a part is the result of a call, in Anthropic's form or that of a framework."""
    return isinstance(part, dict) and part.get("type") in RESULT_KINDS


def failed_text(text: str) -> str:
    """The result of a call that failed, which says so."""
    return text if "error" in text[:ERROR_HEAD].lower() else f"Error: {text}"


def call_or_result(part: Any) -> Any:
    """A call or a result as Anthropic's part; any other part as it is."""
    if is_call(part):
        return _call_part(part)
    return _result_part(part) if is_result(part) else part


def _call_part(part: dict[str, Any]) -> dict[str, Any]:
    arguments = next((part[key] for key in ("input", "args", "arguments") if part.get(key) is not None), None)
    call_id = next((part[key] for key in CALL_IDS if part.get(key) is not None), None)
    return {"type": "tool_use", "id": call_id, "name": part.get("name", part.get("toolName")), "input": arguments}


def _result_part(part: dict[str, Any]) -> dict[str, Any]:
    content = next((part[key] for key in ("content", "output", "result") if part.get(key) is not None), None)
    is_error = part.get("is_error", part.get("isError"))
    if isinstance(content, dict) and "value" in content and isinstance(content.get("type"), str):  # the AI SDK's
        is_error = is_error or content["type"].startswith("error")
        content = content["value"]
    call_id = next((part[key] for key in RESULT_IDS if part.get(key) is not None), None)
    name = part.get("name", part.get("toolName"))
    return {"type": "tool_result", "tool_use_id": call_id, "name": name, "content": content, "is_error": is_error}


def _thought_part(part: Any) -> dict[str, str]:
    return {"type": "thinking", "thinking": thought_in(part)}


def plain_part(part: Any) -> Any:
    """Text without a type, or under the Responses API's, as a text part; anything else as it is. Null is empty."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "text", "text": part["text"] or ""} if is_text(part) else part


def is_text(part: Any) -> bool:
    """Whether a part is a text under any of its types, or without one."""
    if not isinstance(part, dict) or part.get("type") not in (None, *TEXT_KINDS):
        return False
    is_empty = part.get("type") is not None and part.get("text", 0) is None
    return is_empty or isinstance(part.get("text"), str)


def is_part(part: Any) -> bool:
    """Whether an item of a result is a part: a text, or another modality with its payload."""
    is_other = isinstance(part, dict) and part.get("type") in OTHER_MODALITIES
    return is_text(part) or (is_other and not part.keys().isdisjoint(PAYLOADS))


def plain_result(content: Any, is_part: Callable[[Any], bool] = is_part) -> Any:
    """The result of a tool as a string or as parts: whatever is no text is its JSON, null is left alone.

    A list of data is the JSON of the whole list; data between parts is a text each.
    """
    if content is None or isinstance(content, str) or content == []:
        return content
    items = content if isinstance(content, list) else [content]
    if not any(isinstance(item, str) or is_part(item) for item in items):
        return as_json(content)
    return [
        plain_part(item) if isinstance(item, str) or is_part(item) else {"type": "text", "text": as_json(item)}
        for item in items
        if item is not None
    ]


def as_json(value: Any) -> str:
    """JSON as it is shown to the model."""
    return json.dumps(value, ensure_ascii=False)
