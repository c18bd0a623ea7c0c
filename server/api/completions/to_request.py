"""A validated Completions request -> the internal ChatRequest, with raw prompts instead of messages."""

import secrets
from dataclasses import dataclass

from server.api.body import bad
from server.api.chat.constraints import answer_of_format
from server.api.completions.schemas import DEFAULT_MAX_TOKENS, CompletionsRequest, Prompt
from server.api.completions.to_reply import CompletionStyle
from server.api.sampling import SamplingMapper
from server.chat_request import ChatRequest, RawPrompt
from server.checkpoint.checkpoint import Checkpoint

# Qwen2.5-Coder's own, in the order of its training data: prefix, suffix, and the reply behind the last.
FILL_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
OTHER_FILL_TOKENS = ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")  # what comes behind a finished middle


@dataclass(frozen=True, slots=True)
class CompletionsMapper:
    """Maps requests for one checkpoint."""

    checkpoint: Checkpoint
    sampling: SamplingMapper

    def to_request(self, request: CompletionsRequest) -> ChatRequest:
        """The internal form. Raises RequestRefused or BadSchema."""
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        return ChatRequest(
            id=secrets.token_hex(12),
            model=request.model,
            messages=(),
            sampling=self.sampling.sampling(request, limit, request.logprobs),
            max_tokens=limit,
            stop=tuple(request.stop or ()),
            n=request.n or 1,
            answer=request.answer(answer_of_format(request.response_format, strict=False)),
            on_overflow="refuse",
            cache_salt=request.cache_salt or "",
            raw_prompts=tuple(self._raw_prompt(prompt, request.suffix) for prompt in request.prompt),
            prompt_logprobs=request.logprobs if request.echo else None,
        )

    def style(self, request: CompletionsRequest) -> CompletionStyle:
        """How the reply is to be written."""
        options = request.stream_options
        return CompletionStyle(
            model=request.model,
            include_usage=bool(request.stream and options and options.include_usage),
            logprobs=request.logprobs is not None,
            scores_prompt=request.logprobs is not None and bool(request.echo),
            echoed=tuple(map(self._text_of, request.prompt)) if request.echo and request.logprobs is None else (),
        )

    def _raw_prompt(self, prompt: Prompt, suffix: str | None) -> RawPrompt:
        if not isinstance(prompt, str):
            vocab_size = self.sampling.vocab_size
            if not all(0 <= token_id < vocab_size for token_id in prompt):
                text = f"Invalid 'prompt': token ids of this model are 0 to {vocab_size - 1}."
                raise bad(text, "prompt", "invalid_value")
            return RawPrompt((tuple(prompt),))
        if suffix is None:
            return RawPrompt((prompt,))
        known = self.checkpoint.marker_ids
        if not all(token in known for token in FILL_TOKENS):
            text = "'suffix' is not supported: this model has no tokens to fill in the middle of a text."
            raise bad(text, "suffix", "unsupported_value")
        head, behind, middle = (known[token] for token in FILL_TOKENS)
        ends = tuple(known[token] for token in (*FILL_TOKENS, *OTHER_FILL_TOKENS) if token in known)
        return RawPrompt(((head,), prompt, (behind,), suffix, (middle,)), ends)

    def _text_of(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        (text,) = self.checkpoint.tokenizer.decode_batch([prompt], skip_special_tokens=False)
        return str(text)
