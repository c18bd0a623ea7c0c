"""Schema of a request for a response. Items of the input are in `items.py`, tools in `tools.py`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from server.api.body import bad
from server.api.chat.fields import Between, Part, name_of, tag_by, tagged
from server.api.chat.schemas import INT64, LONGEST_SALT, NO_EFFECT, read_metadata
from server.api.chat.tool_schemas import JsonObjectFormat, PlainFormat
from server.api.chat.validation_errors import fault, validated, wrong_type
from server.api.lenient import mend_schema, mend_tool_schemas, notes_on_unknown
from server.notes import Note

MOST_TOOLS = 1024  # namespaces hold many
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ReasoningOptions(Part):
    """Effort `none` turns thinking off; a summary is the thought itself."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextSchemaFormat(Part):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: Annotated[str, AfterValidator(name_of(64))]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


TextFormatField = Annotated[
    Annotated[PlainFormat, Tag("~text")]
    | Annotated[JsonObjectFormat, Tag("~json_object")]
    | Annotated[TextSchemaFormat, Tag("~json_schema")],
    Discriminator(tag_by("type")),
    tagged("type", ("text", "json_object", "json_schema")),
]


class TextOptions(Part):
    """Form of the text; `verbosity` has no effect."""

    format: TextFormatField | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


def _read_conversation(value: Any) -> Any:
    if isinstance(value, dict):
        value = value.get("id")
    if not isinstance(value, str):
        raise wrong_type("one of a string or object with an 'id'", value)
    return value


def _refuse_prompt(value: Any) -> Any:
    if value is not None:
        raise fault("unsupported_parameter", "Unsupported parameter: '{P}': this server keeps no prompt templates.")
    return value


class ResponsesRequest(Part):
    """POST /v1/responses."""

    model: str
    input: Annotated[
        Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]})
    ] = Field(None, description="A string, or items: messages, calls, results of calls, thoughts, references.")
    instructions: str | None = Field(None, description="Comes first; not kept by `previous_response_id`.")
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Between(1)] | None = Field(
        None, description=f"{NO_EFFECT} It limits calls of hosted tools, and there are none."
    )
    max_output_tokens: Annotated[int, Between(1)] | None = Field(None, description="Thoughts included.")
    previous_response_id: str | None = None
    conversation: (
        Annotated[str, BeforeValidator(_read_conversation), WithJsonSchema({"type": ["string", "object"]})] | None
    ) = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    include: list[str] | None = Field(
        None, description="`reasoning.encrypted_content` and `message.output_text.logprobs`; others have no effect."
    )
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    temperature: Annotated[float, Between(0, 2)] | None = None
    top_p: Annotated[float, Between(0, 1)] | None = None
    top_logprobs: Annotated[int, Between(0, 20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16), AfterValidator(read_metadata)] | None = None
    prompt: Annotated[Any, AfterValidator(_refuse_prompt), WithJsonSchema({"type": "null"})] = None
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    service_tier: str | None = Field(None, description=NO_EFFECT)
    user: str | None = Field(None, description=NO_EFFECT)
    client_metadata: Any = Field(None, description=NO_EFFECT)
    context_management: Any = Field(None, description=NO_EFFECT)
    moderation: Any = Field(None, description=NO_EFFECT)
    # Extensions
    presence_penalty: Annotated[float, Between(-2, 2)] | None = Field(None, description="Extension.")
    frequency_penalty: Annotated[float, Between(-2, 2)] | None = Field(None, description="Extension.")
    top_k: Annotated[int, Between(-1)] | None = Field(None, description="Extension. 0 and -1: off.")
    min_p: Annotated[float, Between(0, 1)] | None = Field(None, description="Extension.")
    repetition_penalty: Annotated[float, Between(0.01, 10)] | None = Field(None, description="Extension.")
    seed: Annotated[int, Between(-INT64 - 1, INT64)] | None = Field(None, description="Extension.")
    ignore_eos: bool | None = Field(None, description="Extension.")
    thinking_budget: Annotated[int, Between(0)] | None = Field(None, description="Extension. Most tokens of thought.")
    must_answer: bool | None = Field(None, description="Extension. The reply cannot end without text or a call.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Extension. Variables of the template.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=LONGEST_SALT)] | None = Field(
        None, description="Extension. Cached prefixes are shared by requests with the same salt only."
    )

    def includes(self, name: str) -> bool:
        """Whether `include` has this name."""
        return name in (self.include or ())

    @property
    def keeps(self) -> bool:
        """Whether the response is to be kept."""
        return self.store is not False


def read_responses_request(body: dict[str, Any], strict: bool) -> tuple[ResponsesRequest, tuple[Note, ...]]:
    """The validated request, and notes on what was mended or ignored; `strict` refuses unknown keys.

    Raises RequestRefused with the first error.
    """
    notes: tuple[Note, ...] = ()
    if not strict:
        notes = (*mend_tool_schemas(body.get("tools"), "parameters"), *mend_schema(body.get("text"), "text"))
    if not body.get("model"):
        raise bad("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    for name in body:
        if strict and name not in ResponsesRequest.model_fields:
            raise bad(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    if body.get("max_output_tokens") == -1 and not strict:
        body = body | {"max_output_tokens": None}  # other servers' word for no limit
    request = validated(ResponsesRequest, body)
    _check_fields_together(request)
    return request, notes + notes_on_unknown(body, ResponsesRequest.model_fields)


def _check_fields_together(request: ResponsesRequest) -> None:
    if not request.input and not request.instructions and not (request.previous_response_id or request.conversation):
        raise bad("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    if request.previous_response_id and request.conversation:
        text = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Send one of them."
        raise bad(text, "previous_response_id", "mutually_exclusive_parameters")
    if request.background and not request.keeps:
        raise bad("Background mode requires 'store' to be true.", "background", "invalid_parameter_combination")
