"""Schema of a Completions request: a prompt that is continued as it stands, without a chat template."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from server.api.body import bad
from server.api.chat.constraints import AnswerConstraints, FormatField
from server.api.chat.fields import Between, Part, or_unlimited
from server.api.chat.schemas import EXTENSION, INT64, LONGEST_SALT, NO_EFFECT, Bias, Stop, StreamOptions
from server.api.chat.validation_errors import fault, unknown_key, validated, wrong_type
from server.api.lenient import notes_on_unknown, without_extra_body
from server.notes import Note

MAX_CHOICES = 128  # of all prompts together
DEFAULT_MAX_TOKENS = 16
Prompt = str | list[int]  # a text, or token ids


def _read_prompts(value: Any) -> Any:
    """Every prompt in a list: `"a"`, `["a", "b"]`, `[1, 2]` and `[[1, 2], [3]]` are all forms of it."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong_type("one of a string or array", value)
    if value and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        return [value]
    for position, one in enumerate(value):
        is_ids = isinstance(one, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in one)
        if not (isinstance(one, str) or is_ids):
            raise wrong_type("a string or an array of token ids", one, f"[{position}]")
    return value


def _check_prompts(value: list[Prompt]) -> list[Prompt]:
    for position, one in enumerate(value):
        if not one:
            raise fault("empty_string", "Invalid '{P}': a prompt needs one token at least.", f"[{position}]")
    return value


PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}
Prompts = Annotated[
    list[Prompt],
    Field(min_length=1, max_length=MAX_CHOICES),
    BeforeValidator(_read_prompts),
    AfterValidator(_check_prompts),
    WithJsonSchema(PROMPT_SCHEMA),
]


class CompletionsFields(Part):
    """The fields of a Completions request that OpenAI knows."""

    model: str
    prompt: Prompts
    suffix: str | None = Field(None, description="Text behind the completion, for models that fill in the middle.")
    max_tokens: Annotated[int, Between(0), or_unlimited] | None = Field(
        None, description="16 if left out; -1: what the window leaves; 0 with `echo`: the prompt alone."
    )
    n: Annotated[int, Between(1, MAX_CHOICES)] | None = None
    best_of: Annotated[int, Between(1, MAX_CHOICES)] | None = Field(None, description="Equal to `n`, or left out.")
    echo: bool | None = Field(None, description="The text begins with the prompt.")
    logprobs: Annotated[int, Between(0, 20)] | None = Field(
        None, description="Alternatives of each token, with `echo` of the prompt's too."
    )
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Between(0, 2)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Between(0, 1)] | None = None
    presence_penalty: Annotated[float, Between(-2, 2)] | None = None
    frequency_penalty: Annotated[float, Between(-2, 2)] | None = None
    logit_bias: Bias | None = None
    seed: Annotated[int, Between(-INT64 - 1, INT64)] | None = None
    user: str | None = Field(None, description=NO_EFFECT)


class CompletionsRequest(AnswerConstraints, CompletionsFields):
    """POST /v1/completions: OpenAI's fields, and extensions."""

    response_format: FormatField | None = Field(None, description="Extension. As in chat requests.")
    top_k: Annotated[int, Between(-1)] | None = Field(None, description="Extension. 0 and -1: off.")
    min_p: Annotated[float, Between(0, 1)] | None = Field(None, description="Extension.")
    repetition_penalty: Annotated[float, Between(0.01, 10)] | None = Field(None, description="Extension.")
    ignore_eos: bool | None = Field(None, description="Extension. The model's end of text does not end the reply.")
    min_tokens: Annotated[int, Between(0)] | None = Field(None, description="Extension.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=LONGEST_SALT)] | None = Field(
        None, description="Extension. Cached prefixes are shared by requests with the same salt only."
    )


def read_completions_request(body: dict[str, Any], strict: bool) -> tuple[CompletionsRequest, tuple[Note, ...]]:
    """The validated request, and notes on keys that are ignored; `strict` refuses these and extensions.

    Raises RequestRefused, the first error.
    """
    body = body if strict else without_extra_body(body)
    sent = {name: value for name, value in body.items() if value is not None}
    if not sent.get("model"):
        raise bad("you must provide a model parameter", None)
    if strict and (name := unknown_key(sent, CompletionsRequest, EXTENSION)) is not None:
        raise bad(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    request = validated(CompletionsRequest, sent, context={"strict": strict})
    _check_together(request)
    return request, notes_on_unknown(body, CompletionsRequest.model_fields)


def _check_together(request: CompletionsRequest) -> None:
    """Fields that are right alone and wrong together."""
    n = request.n or 1
    if request.best_of not in (None, n):
        raise bad("Invalid 'best_of': it must equal 'n'; every completion is sent.", "best_of", "invalid_value")
    if n * len(request.prompt) > MAX_CHOICES:
        text = f"Invalid 'n': {len(request.prompt)} prompts of {n} completions are more than {MAX_CHOICES}."
        raise bad(text, "n", "invalid_value")
    if request.max_tokens == 0 and not request.echo:
        text = "Invalid 'max_tokens': 0 tokens are a reply only with 'echo'; ask for 1 at least, or set 'echo'."
        raise bad(text, "max_tokens", "invalid_value")
    if request.suffix is not None and any(not isinstance(prompt, str) for prompt in request.prompt):
        raise bad("'suffix' needs a prompt of text, not of token ids.", "suffix", "invalid_value")
    if request.stream_options is not None and not request.stream:
        text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise bad(text, "stream_options")
