"""Body of a request to vLLM's token route; what it cannot say is refused as Unsupported."""

from typing import Any

from server.errors import Unsupported
from server.messages import Generate, ReasoningPhase

START = "start: "


def body_of(request: Generate, model: str) -> dict[str, Any]:
    """The JSON of a request, or of what is left of one that was begun elsewhere. Raises Unsupported."""
    if lacking := unsupported(request):
        raise Unsupported(f"this model is computed by vLLM, which cannot be told {lacking}")
    sampling, num_written = request.sampling, len(request.reply_ids)
    parameters: dict[str, Any] = {
        "max_tokens": sampling.max_tokens - num_written,
        "min_tokens": max(0, sampling.min_tokens - num_written),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": sampling.seed,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": [] if sampling.ignore_eos else list(request.stop_ids),
        "detokenize": False,
    }
    if sampling.logit_bias:
        parameters["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias.items()}
    if sampling.num_logprobs is not None:
        parameters["logprobs"] = sampling.num_logprobs
    if request.constraint is not None:
        parameters["structured_outputs"] = {"grammar": grammar_of(request.constraint.source, request.reasoning_phase)}
    body: dict[str, Any] = {
        "request_id": request.id,
        "model": model,
        "token_ids": [*request.token_ids, *request.reply_ids],
        "stream": True,
        "reasoning_ended": True,  # the grammar holds from the first token: the think block is part of it
        "sampling_params": parameters,
    }
    return body | ({"cache_salt": request.cache_salt} if request.cache_salt else {})


def unsupported(request: Generate) -> str:
    """What vLLM cannot be told of this request, in words; empty if there is nothing."""
    sampling, phase = request.sampling, request.reasoning_phase
    if request.adapter:
        return "an adapter's name"
    if sampling.max_tokens < 1:
        return "to write nothing (max_tokens: 0)"
    if request.prompt_logprobs is not None:
        return "to report the logprobs of a prompt (echo with logprobs)"
    if phase is not None and phase.limit is not None and request.constraint is None:
        return "a budget of thinking tokens where no tool or format binds the reply; leave the budget out"
    if request.reply_ids and request.constraint is not None:
        return "to go on with a reply that another engine began under a grammar"
    if request.reply_ids and (sampling.presence_penalty or sampling.frequency_penalty):
        return "to go on with a reply that another engine began under penalties"
    return ""


def grammar_of(source: str, phase: ReasoningPhase | None) -> str:
    """The grammar of the whole reply: free text up to the end of the think block, then what the constraint admits.

    Control tokens are no text: a call cannot begin before the block has ended. Beyond the limit its end is forced.
    """
    if phase is None:
        return source
    assert source.startswith(START), "a grammar begins with its first rule"
    text = "thoughts? " if phase.limit != 0 else ""
    behind = f"{text}<[{phase.end_id}]> constrained"
    start = behind if phase.open_id is None else f"<[{phase.open_id}]> {behind} | constrained"
    limit = "" if phase.limit is None else f"[max_tokens={phase.limit}]"
    rule = f"thoughts{limit}: /(?s:.+)/\n" if text else ""
    return f"{START}{start}\n{rule}constrained: {source.removeprefix(START)}"
