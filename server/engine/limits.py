"""What the scheduler keeps to, and which requests can therefore never be served."""

from dataclasses import dataclass

from server.messages import Failed, Generate

# In one step. Up to here the weights are read for one token as for all; beyond, on a CPU each takes time of its own,
# and a draft that may be thrown away is dear.
CHEAP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are tokens, sequences, or seconds where the name says so."""

    max_batch_tokens: int
    max_running: int
    max_queue: int
    max_model_len: int  # tokens of prompt and reply together
    cache_tokens: int  # tokens that the whole KV cache holds
    vocab_size: int
    fast_forward: bool = True
    draft_tokens: int = 0
    copies_blocks: bool = False  # whether copying a block is cheaper than computing some of its tokens
    runs_ahead: bool = False  # whether the device computes on while the host takes in what it drew
    seed: int = 0
    patience_s: float = 30.0  # how long a sequence waits for memory while nothing runs

    def spare_lines(self, num_sequences: int) -> int:
        """Lines of logits that drafts may have while so many sequences may want one each; none among many.

        Memory is set aside for a line each of the most that run, and for one that runs alone with all its drafts.
        """
        free = max(self.max_running, 1 + self.draft_tokens) - min(self.max_running, num_sequences)
        return max(0, min(free, CHEAP_TOKENS - num_sequences))


def find_refusal(request: Generate, limits: Limits) -> Failed | None:
    """Why this request can never be served, found out before anything is spent on it; None if it can be."""
    num_prompt, num_reply = len(request.token_ids), request.sampling.max_tokens
    largest = min(limits.max_model_len, limits.cache_tokens)
    if num_prompt + num_reply > largest:
        what = "this model takes" if largest == limits.max_model_len else "the KV cache of this server holds"
        text = f"{num_prompt} tokens of prompt and up to {num_reply} of reply, but {what} {largest}"
        return Failed(request.id, "too_long", f"{text}; shorten the messages or lower max_tokens")
    if num_prompt == 0 or num_reply < 1:
        return Failed(request.id, "unsupported", "there must be at least one token of prompt and one of reply")
    for name, token_ids in (("the prompt", request.token_ids), ("logit_bias", request.sampling.logit_bias)):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < limits.vocab_size:
            text = f"{name} has token ids outside this model's vocabulary of {limits.vocab_size}"
            return Failed(request.id, "unsupported", text)
    return None
