"""Schema of a Messages request. Unknown fields are ignored at every level, as clients send those of newer versions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, WithJsonSchema, model_validator

from server.api.body import bad, kind_of
from server.api.chat.constraints import AnswerConstraints, FormatField, read_flat_format
from server.api.chat.content import OTHER_MODALITIES, is_part, is_thought, plain_part, plain_result, thought_in
from server.api.chat.fields import Between, OwnOptions, Part, is_strict, or_unlimited, tag_by, tagged
from server.api.chat.message_schemas import MAX_ITEMS, OwnId, PastArguments, PastName, TextPart, with_name, with_own
from server.api.chat.schemas import EXTENSION, LONGEST_STOP, MOST_MESSAGES, NO_EFFECT
from server.api.chat.thinking import (
    OTHER_NAME,
    Budget,
    EffortField,
    SwitchField,
    ThinkingSwitch,
    ThinkingSwitches,
    read_switch,
)
from server.api.chat.tool_schemas import ToolName
from server.api.chat.validation_errors import fault, unknown_key, validated, wrong_type
from server.api.lenient import mend_schema, mend_tool_schemas, refuse_constraints, without_extra_body
from server.api.tool_forms import history_in_messages_form, tools_in_messages_form
from server.notes import Note

MOST_STOP_SEQUENCES = 64
NO_THREADS = "thread_unsupported_request"  # by this code Anthropic's SDKs know that they must send whole histories
MOST_TOOLS_OFFERED = 512  # Anthropic sets no limit; clients with several MCP servers pass OpenAI's 128
REFUSED_BLOCKS = ("container_upload", *(kind for kind in OTHER_MODALITIES if kind != "file"))
REFUSED_SOURCES = ("base64", "url", "file")


class TextSource(Part):
    """Plain text of a document."""

    type: Literal["text"]
    data: str


class ContentSource(Part):
    """Text of a document in blocks."""

    type: Literal["content"]
    content: "BlockContent"


def _no_binary(kind: str) -> str:
    return f"Invalid '{{P}}': this model reads text, not documents of type '{kind}'." if kind in REFUSED_SOURCES else ""


DocumentSource = Annotated[
    Annotated[TextSource, Tag("~text")] | Annotated[ContentSource, Tag("~content")],
    Discriminator(tag_by("type")),
    tagged("type", ("text", "content"), _no_binary),
]


class DocumentBlock(Part):
    """A document as text."""

    type: Literal["document"]
    source: DocumentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Part):
    """A result of the client's own search."""

    type: Literal["search_result"]
    content: list[TextPart]
    source: str = ""
    title: str = ""


class ToolReferenceBlock(Part):
    """The name of a tool that a search of tools has found. Every tool of `tools` is offered in any case."""

    type: Literal["tool_reference"]
    tool_name: str


class ThinkingBlock(Part):
    """Thoughts of an earlier reply; with an empty `thinking`, those that our own signature carries."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Part):
    """A call of an earlier reply."""

    type: Literal["tool_use"]
    id: OwnId = ""
    name: PastName
    input: PastArguments = None

    _named = model_validator(mode="before")(with_name)
    _identified = model_validator(mode="before")(with_own("id"))


class ToolResultBlock(Part):
    """The result of the call `tool_use_id`."""

    type: Literal["tool_result"]
    tool_use_id: OwnId = ""
    content: "ResultContent | None" = None
    is_error: bool | None = None

    _identified = model_validator(mode="before")(with_own("tool_use_id"))


KNOWN_BLOCKS = ("text", "document", "search_result", "tool_reference", "thinking", "tool_use", "tool_result")


class OtherBlock(Part):
    """A block without meaning for this server, such as `redacted_thinking` or a result of Anthropic's own tools."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"enum": [*KNOWN_BLOCKS, *REFUSED_BLOCKS]}})]


def _read_block(value: Any, info: ValidationInfo) -> Any:
    if not is_strict(info):
        is_own = isinstance(value, dict) and value.get("type") == "thinking"
        if is_thought(value) and not (is_own and isinstance(value.get("thinking"), str)):
            thought = thought_in(value)
            value = {**value, "type": "thinking", "thinking": thought} if thought or is_own else value
        value = plain_part(value)
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    kind = value.get("type")
    if kind in REFUSED_BLOCKS:
        raise fault("unsupported_value", f"Invalid '{{P}}': this model reads text, not blocks of type '{kind}'.")
    return value


def _block_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else value.type
    return f"~{kind}" if kind in KNOWN_BLOCKS else "~other"


Block = Annotated[
    Annotated[TextPart, Tag("~text")]
    | Annotated[DocumentBlock, Tag("~document")]
    | Annotated[SearchResultBlock, Tag("~search_result")]
    | Annotated[ToolReferenceBlock, Tag("~tool_reference")]
    | Annotated[ThinkingBlock, Tag("~thinking")]
    | Annotated[ToolUseBlock, Tag("~tool_use")]
    | Annotated[ToolResultBlock, Tag("~tool_result")]
    | Annotated[OtherBlock, Tag("~other")],
    Discriminator(_block_tag),
    BeforeValidator(_read_block),
]


def _read_content(value: Any, info: ValidationInfo) -> Any:
    if value is None and not is_strict(info):
        return []
    if isinstance(value, list | dict) and not is_strict(info):
        value = [block for block in (value if isinstance(value, list) else [value]) if block is not None]
    if not isinstance(value, str | list):
        text = f"expected one of a string or array of objects, but got {kind_of(value)} instead."
        raise fault("invalid_type", f"Invalid type for '{{P}}': {text}")
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Blocks = Annotated[list[Block], Field(max_length=MAX_ITEMS)]
BlockContent = Annotated[Blocks, BeforeValidator(_read_content, json_schema_input_type=str | Blocks)]


def _read_result(value: Any, info: ValidationInfo) -> Any:
    """Data is its JSON, and so is whatever is no block of Anthropic's."""
    if is_strict(info):
        return value
    return plain_result(value, lambda part: is_part(part) or (isinstance(part, dict) and part.get("type") in _BLOCKS))


_BLOCKS = tuple(kind for kind in (*KNOWN_BLOCKS, *REFUSED_BLOCKS) if kind != "text")
ResultContent = Annotated[BlockContent, BeforeValidator(_read_result)]


def _read_role(value: Any, info: ValidationInfo) -> Any:
    return "system" if value == "developer" and not is_strict(info) else value


class InputMessage(Part):
    """One message; `system` may stand anywhere."""

    role: Annotated[Literal["user", "assistant", "system"], BeforeValidator(_read_role)]
    content: BlockContent


class OfferedTool(Part):
    """A tool. One with another `type` than `custom` is Anthropic's own, and is left out with a note."""

    type: str | None = None
    name: ToolName | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether the tool is one that Anthropic's servers define."""
        return self.type not in (None, "custom")


class ToolChoiceObject(Part):
    """`any` and `tool` force a call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Part):
    """`disabled` turns thinking off, anything else on, for models that can do both; `budget_tokens` bounds it."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Budget = None
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="`omitted` leaves the text out of the block; the signature carries it."
    )

    @property
    def switch(self) -> ThinkingSwitch:
        """What it says of thinking."""
        return ThinkingSwitch(self.type != "disabled", self.budget_tokens)


def _read_thinking(value: Any, info: ValidationInfo) -> Any:
    """Other servers' switches: a boolean, a word, an object without a type or with one of theirs."""
    if is_strict(info) or (isinstance(value, dict) and value.get("type") in ("between_tools", *OWN_TYPES)):
        return value
    switch = read_switch(value)
    kind = "disabled" if switch.on is False else "enabled"
    display = value.get("display") if isinstance(value, dict) else None
    return {"type": kind, "budget_tokens": switch.budget, "display": display}


OWN_TYPES = ("enabled", "disabled", "adaptive")
ThinkingField = Annotated[ThinkingConfig, BeforeValidator(_read_thinking)]


class OutputFormat(Part):
    """The JSON Schema of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


def _read_output_format(value: Any, info: ValidationInfo) -> Any:
    """The formats of other surfaces: text is none, some JSON object one of any schema."""
    plain = read_flat_format(value, info)
    if is_strict(info) or not isinstance(plain, dict):
        return plain
    if plain.get("type") == "text":
        return None
    if plain.get("type") == "json_object":
        return {"type": "json_schema", "schema": plain.get("schema") or {"type": "object"}}
    return plain


OutputFormatField = Annotated[OutputFormat | None, BeforeValidator(_read_output_format)]


class OutputConfig(Part):
    """Form of the answer."""

    effort: str | None = Field(None, description=NO_EFFECT)
    format: OutputFormatField = None


class CountTokensRequest(Part):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    system: BlockContent | None = None
    tools: Annotated[list[OfferedTool], Field(max_length=MOST_TOOLS_OFFERED)] | None = None
    tool_choice: ToolChoiceObject | None = None
    thinking: ThinkingField | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormatField = Field(None, description="Older name of `output_config.format`.")


class MessagesFields(CountTokensRequest):
    """The fields of a Messages request that Anthropic knows."""

    max_tokens: Annotated[int, Between(1), or_unlimited] = Field(
        description="Thoughts included. Extension: -1 is what the window leaves."
    )
    stop_sequences: (
        Annotated[list[Annotated[str, Field(max_length=LONGEST_STOP)]], Field(max_length=MOST_STOP_SEQUENCES)] | None
    ) = Field(None, description="End the answer's text; thoughts and arguments are left alone.")
    stream: bool | None = None
    temperature: Annotated[float, Between(0, 2)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Between(0, 1)] | None = None
    top_k: Annotated[int, Between(-1)] | None = Field(None, description="0 and -1: off.")
    metadata: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    service_tier: str | None = Field(None, description=NO_EFFECT)


class MessagesRequest(OwnOptions, AnswerConstraints, ThinkingSwitches, MessagesFields):
    """POST /v1/messages: Anthropic's fields, and extensions."""

    response_format: FormatField | None = Field(None, description="Extension. `output_config.format` of chat requests.")
    reasoning: SwitchField | None = Field(None, description=f"{OTHER_NAME} `thinking`.")
    reasoning_effort: EffortField | None = Field(None, description=f"{OTHER_NAME} `thinking`.")


def read_counted_request(body: dict[str, Any], strict: bool) -> tuple[MessagesRequest, tuple[Note, ...]]:
    """As `read_messages_request`; one that is only counted needs no `max_tokens`."""
    return read_messages_request(body if body.get("max_tokens") is not None else {**body, "max_tokens": 1}, strict)


def read_messages_request(body: dict[str, Any], strict: bool) -> tuple[MessagesRequest, tuple[Note, ...]]:
    """The validated request, and notes on what was mended. Raises RequestRefused, the first error.

    `strict` refuses extensions. Keys that are not known are ignored in any case: clients send those of newer versions.
    """
    notes: tuple[Note, ...] = ()
    if not strict:
        body = without_extra_body(body)
        notes = (
            *tools_in_messages_form(body),
            *history_in_messages_form(body),
            *mend_tool_schemas(body.get("tools"), "input_schema"),
            *mend_schema(body.get("output_config"), "output_config"),
        )
    known = {name: value for name, value in body.items() if name in MessagesRequest.model_fields}
    if strict and (name := unknown_key(known, MessagesRequest, EXTENSION)) is not None:
        raise bad(f"{name}: Extra inputs are not permitted", name, "unknown_parameter")
    if not body.get("model"):
        raise bad("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    if body.get("thread") is not None:
        raise bad("This server keeps no conversations: send all messages, without 'thread'.", "thread", NO_THREADS)
    request = validated(MessagesRequest, body, context={"strict": strict})
    refuse_constraints(body, MessagesRequest.model_fields)
    return request, notes
