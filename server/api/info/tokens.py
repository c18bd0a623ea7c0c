"""Token counts without generation: of a chat request, of plain text, of token ids."""

from typing import Annotated

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from pydantic import FailFast, Field
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import MAX_VALUES, bad, read_body_object
from server.api.chat.examples import REQUESTS
from server.api.chat.fields import Part
from server.api.chat.router import ChatHandler
from server.api.chat.schemas import ChatCompletionRequest
from server.api.chat.validation_errors import validated
from server.api.chat.wire import Notes, noted
from server.api.errors import json_response
from server.api.openapi.operations import error_replies, json_body, json_reply
from server.api.reply_handler import ReplyHandler, read_body
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.template import RenderedText
from server.prompt.window import Window
from server.service import ChatService, until

OTHER_VALUES = 100  # of a body that holds as many ids as the window
MAX_TOKEN_ID = (1 << 31) - 1
CONVERSION_ERRORS = (400, 401, 408, 413, 429, 500, 504)


class TokenizeRequest(Part):
    """Plain text, in which nothing is a control token."""

    prompt: str


class DetokenizeRequest(Part):
    """Token ids, control tokens among them; no more than fit the context window."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], FailFast()]


class PartCount(msgspec.Struct):
    """Tokens of one part of a prompt, such as `tools` or `messages[0]`."""

    part: str
    tokens: int


class InputTokens(msgspec.Struct, tag_field="object", tag="chat.completion.input_tokens"):
    """Length of a request's prompt, and the tokens of each of its parts."""

    input_tokens: int
    max_model_len: int
    parts: list[PartCount]
    toolwire: Notes | UnsetType = UNSET


class Tokenized(msgspec.Struct):
    """Token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int
    toolwire: Notes | UnsetType = UNSET


class Detokenized(msgspec.Struct):
    """Text of token ids, control tokens shown."""

    prompt: str
    toolwire: Notes | UnsetType = UNSET


def tokens_router(
    replies: ReplyHandler, chat: ChatHandler, service: ChatService, checkpoint: Checkpoint, window: Window
) -> APIRouter:
    """Routes that count and convert tokens, by the code that prepares prompts."""
    router = APIRouter()
    strict = replies.settings.strict

    @router.post(
        "/v1/chat/completions/input_tokens",
        operation_id="countInputTokens",
        summary="Count a request's prompt tokens, by part, without answering it.",
        openapi_extra=json_body(ChatCompletionRequest, REQUESTS),
        responses={
            200: json_reply(InputTokens(12, 2048, [PartCount("messages[0]", 12)])),
            **error_replies(400, 401, 404, 408, 413, 429, 500, 504),
        },
    )
    async def count_input_tokens(request: Request) -> Response:
        count = await replies.count(request, chat.read)
        parts = [PartCount(one.part, one.tokens) for one in count.parts]
        return json_response(InputTokens(count.num_tokens, window.limit, parts, noted(count.notes)))

    @router.post(
        "/tokenize",
        operation_id="tokenize",
        summary="Convert plain text to token ids.",
        openapi_extra=json_body(TokenizeRequest, {"text": {"prompt": "Hello!"}}),
        responses={200: json_reply(Tokenized([9707, 0], 2, 2048)), **error_replies(*CONVERSION_ERRORS)},
    )
    async def tokenize(request: Request) -> Response:
        async with until(replies.deadline(request)):
            return await service.run(_tokenize, checkpoint, window.limit, strict, await read_body(request))

    @router.post(
        "/detokenize",
        operation_id="detokenize",
        summary="Convert token ids to text.",
        openapi_extra=json_body(DetokenizeRequest, {"ids": {"tokens": [9707, 0]}}),
        responses={200: json_reply(Detokenized("Hello!")), **error_replies(*CONVERSION_ERRORS)},
    )
    async def detokenize(request: Request) -> Response:
        async with until(replies.deadline(request)):
            return await service.run(_detokenize, checkpoint, window.limit, strict, await read_body(request))

    return router


def _tokenize(checkpoint: Checkpoint, max_model_len: int, strict: bool, body: bytes) -> Response:
    sent, notes = read_body_object(body, strict)
    text = validated(TokenizeRequest, sent).prompt
    if (least := checkpoint.encoder.min_tokens(text, max_model_len)) > max_model_len:
        reason = f"it has at least {least} tokens, more than the model's maximum context length of {max_model_len}."
        raise bad(f"Invalid 'prompt': {reason} Send it in parts.", "prompt", "string_above_max_length")
    token_ids = checkpoint.encoder.encode(RenderedText(text))
    return json_response(Tokenized(token_ids, len(token_ids), max_model_len, noted(notes)))


def _detokenize(checkpoint: Checkpoint, max_model_len: int, strict: bool, body: bytes) -> Response:
    sent, notes = read_body_object(body, strict, max(MAX_VALUES, max_model_len + OTHER_VALUES))
    token_ids = validated(DetokenizeRequest, sent).tokens
    if len(token_ids) > max_model_len:
        text = (
            f"expected an array with maximum length {max_model_len}, but got one with length {len(token_ids)} instead."
        )
        raise bad(f"Invalid 'tokens': array too long: {text}", "tokens", "array_above_max_length")
    (text,) = checkpoint.tokenizer.decode_batch([token_ids], skip_special_tokens=False)  # `decode` stops other threads
    return json_response(Detokenized(text, noted(notes)))
