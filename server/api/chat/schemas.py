"""Schema of a chat completion request, its fields in the order in which OpenAI reports errors.

Every field is honoured, or accepted without effect and documented as such, or refused. null means: left out.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
)

from server.api.body import bad
from server.api.chat.constraints import AnswerConstraints, FormatField
from server.api.chat.fields import Between, OwnOptions, Part, is_strict, or_unlimited
from server.api.chat.message_schemas import AnyMessage
from server.api.chat.openai_form import in_openai_form
from server.api.chat.thinking import OTHER_NAME, EffortField, SwitchField, ThinkingSwitches
from server.api.chat.tool_schemas import (
    MOST_TOOLS,
    AnyTool,
    ChoiceField,
    Function,
    LegacyChoiceField,
)
from server.api.chat.validation_errors import fault, unknown_key, validated, wrong_type
from server.notes import Note

MOST_MESSAGES = 20_000
MOST_STOPS = 64
MOST_STRICT_STOPS = 4
MOST_METADATA = 16
LONGEST_STOP = 1000  # characters
LONGEST_SALT = 256  # characters
INT64 = (1 << 63) - 1
EXTENSION = "Extension."  # begins the description of a field that OpenAI does not know


class StreamOptions(Part):
    """`include_obfuscation` is accepted; nothing is ever obfuscated."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def _read_stop(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong_type("one of a string or array of strings", value)
    if is_strict(info) and len(value) > MOST_STRICT_STOPS:
        text = f"Expected an array with maximum length {MOST_STRICT_STOPS}, but got an array with length {len(value)}"
        raise fault("array_above_max_length", f"Invalid '{{P}}': array too long. {text} instead.")
    return value


def _read_bias(value: Any, info: ValidationInfo) -> Any:
    if value == [] and not is_strict(info):  # PHP's empty object
        return {}
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit()):
            raise fault("invalid_value", f"Invalid key in 'logit_bias': {key}. Use token ids, which are non-negative.")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise wrong_type("a decimal", bias, f".{key}")
        if not -100 <= bias <= 100:
            raise fault("invalid_value", "Invalid '{P}': expected a value from -100 to 100.", f".{key}")
    return {int(key): float(bias) for key, bias in value.items()}


def _read_modalities(value: list[str]) -> list[str]:
    for kind in value:
        if kind != "text":
            raise fault("invalid_value", f"Invalid value: '{kind}'. Supported values are: 'text'.")
    return value


def _refuse(value: Any) -> Any:
    if value is not None:
        raise fault("unsupported_parameter", "Unsupported parameter: '{P}' is not supported with this model.")
    return value


def read_metadata(value: dict[str, str]) -> dict[str, str]:
    """The metadata; raises a fault for a key or a value that is too long."""
    for key, text in value.items():
        for what, limit in ((key, 64), (text, 512)):
            if len(what) > limit:
                words = f"Expected a string with maximum length {limit}, but got a string with length {len(what)}"
                raise fault("string_above_max_length", f"Invalid '{{P}}': string too long. {words} instead.", f".{key}")
    return value


def check_metadata(value: Any, info: ValidationInfo) -> Any:
    """OpenAI's limits with `--strict`; None otherwise, as a field without effect has none."""
    if not is_strict(info) or value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    if len(value) > MOST_METADATA:
        text = f"Expected an object with at most {MOST_METADATA} properties, but got an object with {len(value)}"
        raise fault("object_above_max_properties", f"Invalid '{{P}}': too many properties. {text} properties instead.")
    for key, text in value.items():
        if not isinstance(text, str):
            raise wrong_type("a string", text, f".{key}")
    return read_metadata(value)


Stop = Annotated[
    list[Annotated[str, Field(max_length=LONGEST_STOP)]],
    Field(max_length=MOST_STOPS),
    BeforeValidator(_read_stop),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MOST_STOPS}]}
    ),
]
Bias = Annotated[
    dict[int, float],
    BeforeValidator(_read_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]
Metadata = Annotated[Any, BeforeValidator(check_metadata), WithJsonSchema({"type": "object"})]
Limit = Annotated[int, Between(1), or_unlimited]
Refused = Annotated[Any, AfterValidator(_refuse), WithJsonSchema({"type": "null"})]
NO_EFFECT = "Accepted, no effect."


class ChatFields(Part):
    """The fields of a chat request that OpenAI knows."""

    model: str
    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    functions: Annotated[list[Function], Field(min_length=1, max_length=MOST_TOOLS)] | None = Field(
        None, json_schema_extra={"deprecated": True}, description="Older name of `tools`."
    )
    function_call: LegacyChoiceField | None = Field(
        None, json_schema_extra={"deprecated": True}, description="Older name of `tool_choice`."
    )
    tools: Annotated[list[AnyTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ChoiceField | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Limit | None = Field(
        None, description="Thoughts included. Extension: -1 is what the window leaves."
    )
    n: Annotated[int, Between(1, 128)] | None = None
    temperature: Annotated[float, Between(0, 2)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Between(0, 1)] | None = None
    presence_penalty: Annotated[float, Between(-2, 2)] | None = None
    frequency_penalty: Annotated[float, Between(-2, 2)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Between(0, 20)] | None = None
    user: str | None = Field(None, description=NO_EFFECT)
    seed: Annotated[int, Between(-INT64 - 1, INT64)] | None = None
    moderation: Any = Field(None, description=NO_EFFECT)
    safety_identifier: Annotated[str, Field(max_length=128)] | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=f"{NO_EFFECT} Prompts that begin alike share.")
    prompt_cache_options: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=NO_EFFECT)
    response_format: FormatField | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    max_tokens: Limit | None = Field(None, description="Older name of `max_completion_tokens`.")
    reasoning_effort: EffortField | None = Field(
        None, description="`none` turns thinking off, anything else on, for models that can do both."
    )
    logit_bias: Bias | None = None
    stop: Stop | None = Field(None, description="Ends the answer's text; thoughts and arguments are left alone.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = Field(None, description=NO_EFFECT)
    metadata: Metadata = Field(None, description=NO_EFFECT)
    prediction: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=NO_EFFECT)
    modalities: Annotated[list[str], AfterValidator(_read_modalities)] | None = None
    audio: Refused = None
    web_search_options: Refused = None


class ChatCompletionRequest(OwnOptions, AnswerConstraints, ThinkingSwitches, ChatFields):
    """POST /v1/chat/completions: OpenAI's fields, and extensions."""

    top_k: Annotated[int, Between(-1)] | None = Field(None, description="Extension. 0 and -1: off.")
    min_p: Annotated[float, Between(0, 1)] | None = Field(None, description="Extension.")
    repetition_penalty: Annotated[float, Between(0.01, 10)] | None = Field(None, description="Extension.")
    ignore_eos: bool | None = Field(None, description="Extension. The model's end of turn does not end the reply.")
    min_tokens: Annotated[int, Between(0)] | None = Field(None, description="Extension.")
    continue_final_message: bool | None = Field(
        None, description="Extension. The last message is the assistant's and is continued instead of answered."
    )
    thinking: SwitchField | None = Field(None, description=f"{OTHER_NAME} `enable_thinking` and `thinking_budget`.")
    reasoning: SwitchField | None = Field(None, description=f"{OTHER_NAME} `reasoning_effort` and `thinking_budget`.")
    must_answer: bool | None = Field(None, description="Extension. The reply cannot end without text or a call.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=LONGEST_SALT)] | None = Field(
        None, description="Extension. Cached prefixes are shared by requests with the same salt only."
    )
    on_overflow: Literal["refuse", "drop-oldest"] | None = Field(
        None, description="Extension. What to do with a prompt beyond the window."
    )


def read_request(body: dict[str, Any], strict: bool) -> tuple[ChatCompletionRequest, tuple[Note, ...]]:
    """The validated request, and notes on what was changed before; `strict` is OpenAI to the letter.

    Raises RequestRefused with the first error.
    """
    if not body.get("model"):
        raise bad("you must provide a model parameter", None)
    if body.get("messages") is None:
        raise bad("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    notes: tuple[Note, ...] = ()
    if strict:
        _refuse_unknown(body)
    else:
        body, notes = in_openai_form(body, ChatCompletionRequest.model_fields)
    request = validated(ChatCompletionRequest, body, context={"strict": strict})
    _check_together(request, strict)
    return request, notes


def _refuse_unknown(body: dict[str, Any]) -> None:
    options = body.get("stream_options")
    holders: tuple[tuple[str, Any, type[BaseModel]], ...] = (
        ("", body, ChatCompletionRequest),
        ("stream_options.", options, StreamOptions),
    )
    for prefix, holder, model in holders:
        if isinstance(holder, dict) and (name := unknown_key(holder, model, EXTENSION)) is not None:
            path = prefix + name
            raise bad(f"Unknown parameter: '{path}'.", path, "unknown_parameter")


def _check_together(request: ChatCompletionRequest, strict: bool) -> None:
    """Fields that are right alone and wrong together."""
    if (request.top_logprobs or (strict and request.top_logprobs is not None)) and not request.logprobs:
        text = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise bad(text, "top_logprobs")
    limits = {request.max_tokens, request.max_completion_tokens}
    if None not in limits and (strict or len(limits) > 1):
        text = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise bad(text, "max_tokens", "invalid_parameter_combination")
    if request.stream_options is not None and not request.stream:
        text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise bad(text, "stream_options")
    if request.traces and (request.n or 1) > 1:
        raise bad("'toolwire.trace' is of one reply: leave out 'n'.", "toolwire.trace", "invalid_parameter_combination")
    if request.continue_final_message and request.messages[-1].role != "assistant":
        text = "'continue_final_message' needs an assistant message at the end of 'messages'."
        raise bad(text, "continue_final_message")
