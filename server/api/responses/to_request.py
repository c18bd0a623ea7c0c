"""A validated request for a response -> the internal ChatRequest, and the response as it begins."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.body import bad
from server.api.chat.constraints import answer_of_format
from server.api.chat.to_reply import new_id
from server.api.chat.to_request import RequestMapper
from server.api.responses.conversation import ConversationReader
from server.api.responses.items import InputItem
from server.api.responses.reasoning_seal import SUMMARY_PREFIX, ReasoningSeal
from server.api.responses.schemas import ResponsesRequest
from server.api.responses.to_reply import ResponseStyle
from server.api.responses.tools import OfferedTools, ToolReader, read_choice
from server.api.responses.wire import ConversationReference, ResponseObject
from server.chat_request import ChatRequest, Message, SystemMessage
from server.messages import Sampling
from server.notes import Note

SEALED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class MappedResponse:
    """A request in its internal form, and the response that answers it."""

    request: ChatRequest
    response: ResponseObject
    style: ResponseStyle


@dataclass(frozen=True, slots=True)
class ResponsesMapper:
    """Maps requests for responses; `chat` maps what chat requests have as well."""

    chat: RequestMapper
    seal: ReasoningSeal

    def map(
        self, sent: ResponsesRequest, kept: Sequence[InputItem], items: Sequence[InputItem], notes: Sequence[Note] = ()
    ) -> MappedResponse:
        """The request: `kept` items of earlier responses, then its own. Raises RequestRefused or BadSchema."""
        messages, new_notes = self._messages(sent, kept, items)
        offered = ToolReader(self.chat).read(sent.tools or ())
        logprobs = (sent.top_logprobs or 0) if sent.includes(LOGPROBS) or sent.top_logprobs else None
        sampling = self.chat.sampling.sampling(sent, sent.max_output_tokens, logprobs)
        reasoning = None if sent.reasoning is None else sent.reasoning.switch
        thinking = sent.switch(sent.thinking, reasoning, sent.reasoning_effort)
        format = sent.text.format if sent.text is not None else None
        strict = self.chat.strict
        request = ChatRequest(
            id=secrets.token_hex(12),
            model=sent.model,
            messages=messages,
            sampling=sampling,
            max_tokens=sent.max_output_tokens,
            tool_definitions=offered.definitions,
            tools=offered.tools,
            choice=read_choice(sent.tool_choice, offered.tools, sent.parallel_tool_calls is not False),
            answer=sent.answer(
                answer_of_format(format, strict, "text.format"), answer_of_format(sent.response_format, strict)
            ),
            thinking=thinking.on,
            thinking_budget=thinking.budget,
            template_kwargs=sent.template_variables,
            on_overflow=None if sent.truncation is None else _ON_OVERFLOW[sent.truncation],
            cache_salt=sent.cache_salt or "",
            must_answer=self.chat.must_answer if sent.must_answer is None else sent.must_answer,
            notes=(*notes, *new_notes, *offered.notes),
            trace=sent.traces,
        )
        summary = sent.reasoning is not None and (sent.reasoning.summary or sent.reasoning.generate_summary)
        seal = self.seal.seal if sent.includes(SEALED) else None
        style = ResponseStyle(logprobs is not None, bool(summary), offered.names, seal)
        return MappedResponse(request, _begun(sent, sampling, offered), style)

    def _messages(
        self, sent: ResponsesRequest, kept: Sequence[InputItem], items: Sequence[InputItem]
    ) -> tuple[tuple[Message, ...], tuple[Note, ...]]:
        open_summary = self.seal.of_prefix(SUMMARY_PREFIX).open
        reader = ConversationReader(self.seal.open, open_summary, self.chat.repair_history, self.chat.strict)
        reader.read(kept, "conversation" if sent.conversation else "previous_response_id")
        reader.read(items)
        messages, notes = reader.close()
        if sent.instructions is not None:
            messages = (SystemMessage(sent.instructions), *messages)
        if not messages:
            raise bad("Invalid 'input': it holds nothing that could be answered.", "input", "invalid_value")
        return messages, notes


_ON_OVERFLOW: Mapping[str, Any] = {"auto": "drop-oldest", "disabled": "refuse"}


def _begun(sent: ResponsesRequest, sampling: Sampling, offered: OfferedTools) -> ResponseObject:
    """The response before its first item."""
    reasoning, text = sent.reasoning, sent.text
    format = text.format.model_dump(by_alias=True) if text is not None and text.format is not None else _PLAIN
    return ResponseObject(
        id=f"resp_{new_id()}",
        created_at=int(time.time()),
        status="in_progress",
        background=bool(sent.background),
        instructions=sent.instructions,
        max_output_tokens=sent.max_output_tokens,
        max_tool_calls=sent.max_tool_calls,
        model=sent.model,
        parallel_tool_calls=sent.parallel_tool_calls is not False,
        previous_response_id=sent.previous_response_id,
        conversation=ConversationReference(sent.conversation) if sent.conversation else None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        prompt_cache_key=sent.prompt_cache_key,
        reasoning={
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None,
        },
        safety_identifier=sent.safety_identifier,
        temperature=sampling.temperature,
        text={"format": format, "verbosity": (text.verbosity if text is not None else None) or "medium"},
        tool_choice=sent.tool_choice if sent.tool_choice is not None else "auto",
        tools=offered.echo,
        top_logprobs=sent.top_logprobs or 0,
        top_p=sampling.top_p,
        truncation=sent.truncation or "disabled",
        user=sent.user,
        metadata=sent.metadata or {},
    )


_PLAIN = {"type": "text"}
