"""Schema of a request for a response. Items of the input are in `items.py`, tools in `tools.py`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from server.api.body import bad
from server.api.chat.constraints import AnswerConstraints, FlatFormatField, FormatField
from server.api.chat.content import as_json
from server.api.chat.fields import Between, OwnOptions, Part, is_strict
from server.api.chat.schemas import EXTENSION, INT64, LONGEST_SALT, NO_EFFECT, check_metadata
from server.api.chat.thinking import (
    OTHER_NAME,
    Budget,
    Effort,
    EffortField,
    SwitchField,
    ThinkingSwitch,
    ThinkingSwitches,
    read_effort,
    read_switch,
)
from server.api.chat.validation_errors import fault, unknown_key, validated, wrong_type
from server.api.lenient import mend_schema, mend_tool_schemas, notes_on_unknown, without_extra_body
from server.api.responses.items import InputItem
from server.api.tool_forms import tools_in_responses_form
from server.notes import Note

MOST_TOOLS = 1024  # namespaces hold many


class ReasoningOptions(Part):
    """Effort `none` turns thinking off; a summary is the thought itself. Extensions: `enabled`, `max_tokens`."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    enabled: bool | None = None
    max_tokens: Budget = None

    @property
    def switch(self) -> ThinkingSwitch:
        """What they say of thinking."""
        effort = None if self.effort is None else self.effort != "none"
        return ThinkingSwitch(effort if self.enabled is None else self.enabled, self.max_tokens)


def _read_reasoning(value: Any, info: ValidationInfo) -> Any:
    """Other servers' switches: a boolean, a word, an `effort` that is a word for off."""
    if is_strict(info) or value is None:
        return value
    switch = read_switch(value)
    read = {"enabled": switch.on, "max_tokens": switch.budget}
    if not isinstance(value, dict):
        return read
    return value | read | {"effort": read_effort(value.get("effort"), info)}


class TextOptions(Part):
    """Form of the text; `verbosity` has no effect."""

    format: FlatFormatField | None = None
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


def _read_metadata(value: Any, info: ValidationInfo) -> Any:
    """Values that are no texts are their JSON. OpenAI's limits hold with `--strict` alone."""
    if is_strict(info) or not isinstance(value, dict | list):
        return check_metadata(value, info) if is_strict(info) else value
    if value and isinstance(value, list):
        raise wrong_type("an object", value)
    sent = value.items() if isinstance(value, dict) else ()  # PHP writes an empty object as an empty array
    return {key: item if isinstance(item, str) else as_json(item) for key, item in sent}


def _as_sent(value: Any) -> Any:
    """Items are read apart from the request, those that it continues before its own."""
    return value


class ResponsesFields(Part):
    """The fields of a request for a response that OpenAI knows."""

    model: str
    input: Annotated[Any, BeforeValidator(_as_sent, json_schema_input_type=str | list[InputItem])] = Field(
        None, description="A string, or items: messages, calls, results of calls, thoughts, references."
    )
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
    reasoning: Annotated[ReasoningOptions, BeforeValidator(_read_reasoning)] | None = None
    text: TextOptions | None = None
    temperature: Annotated[float, Between(0, 2)] | None = None
    top_p: Annotated[float, Between(0, 1)] | None = None
    top_logprobs: Annotated[int, Between(0, 20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_read_metadata)] | None = None
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


class ResponsesRequest(OwnOptions, AnswerConstraints, ThinkingSwitches, ResponsesFields):
    """POST /v1/responses: OpenAI's fields, and extensions."""

    response_format: FormatField | None = Field(None, description="Extension. `text.format` as chat requests have it.")
    thinking: SwitchField | None = Field(None, description=f"{OTHER_NAME} `enable_thinking` and `thinking_budget`.")
    reasoning_effort: EffortField | None = Field(
        None, description="Extension. `reasoning.effort` as chat requests have it."
    )
    presence_penalty: Annotated[float, Between(-2, 2)] | None = Field(None, description="Extension.")
    frequency_penalty: Annotated[float, Between(-2, 2)] | None = Field(None, description="Extension.")
    top_k: Annotated[int, Between(-1)] | None = Field(None, description="Extension. 0 and -1: off.")
    min_p: Annotated[float, Between(0, 1)] | None = Field(None, description="Extension.")
    repetition_penalty: Annotated[float, Between(0.01, 10)] | None = Field(None, description="Extension.")
    seed: Annotated[int, Between(-INT64 - 1, INT64)] | None = Field(None, description="Extension.")
    ignore_eos: bool | None = Field(None, description="Extension.")
    must_answer: bool | None = Field(None, description="Extension. The reply cannot end without text or a call.")
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
        body = without_extra_body(body)
        notes = (*tools_in_responses_form(body), *mend_tool_schemas(body.get("tools"), "parameters"))
        notes += tuple(mend_schema(body.get("text"), "text"))
    if not body.get("model"):
        raise bad("Missing required parameter: 'model'.", "model", "missing_required_parameter")
    if strict and (name := unknown_key(body, ResponsesRequest, EXTENSION)) is not None:
        raise bad(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    if body.get("max_output_tokens") == -1 and not strict:
        body = body | {"max_output_tokens": None}  # other servers' word for no limit
    request = validated(ResponsesRequest, body, context={"strict": strict})
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
    if request.background and request.traces:
        text = "A trace is not kept: leave out 'toolwire.trace' or 'background'."
        raise bad(text, "toolwire.trace", "invalid_parameter_combination")
