"""Reports of engines elsewhere: whether they can be true, and sums over several of them.

A message that the engine's own code never writes takes it out. Otherwise it would fail in the middle of a reply, as an
error of this server, once for every request that is sent there.
"""

import math
from collections.abc import Sequence
from itertools import chain

import msgspec

from server.backends.open_requests import OpenRequest
from server.backends.protocol import OtherLoad
from server.messages import Delta, Failed, MemoryReport, Pulse, Ready, TokenLogprob

LEVELS = ("calm", "tight", "critical")
MAX_EVENTS = 64
COUNTED = (
    "running", "waiting", "total_blocks", "used_blocks", "cached_blocks", "steps", "prompt_tokens", "cached_tokens",
    "output_tokens", "forced_tokens", "drafted_tokens", "accepted_tokens", "preemptions", "hung_grammars",
)  # fmt: skip
MEASURED = (
    "weight_bytes", "activation_bytes", "kv_bytes", "allocated_bytes", "reserved_bytes", "ooms", "room_bytes",
    "allowed_blocks", "fixed_bytes",
)  # fmt: skip

MAX_TEXT = 4000  # characters of an error that a client gets


def joined_ready(engines: Sequence[Ready]) -> Ready:
    """What all engines can do: the shortest window, the KV caches together."""
    return Ready(
        device=", ".join(dict.fromkeys(one.device for one in engines)),
        dtype=", ".join(dict.fromkeys(one.dtype for one in engines)),
        vocab_size=min(one.vocab_size for one in engines),
        max_model_len=min(one.max_model_len for one in engines),
        num_blocks=sum(one.num_blocks for one in engines),
        block_size=max(one.block_size for one in engines),
        weight_bytes=sum(one.weight_bytes for one in engines),
        load_s=max(one.load_s for one in engines),
    )


def joined_pulse(pulses: Sequence[Pulse]) -> Pulse:
    """The sum of heartbeats, at the time of the oldest."""
    sums = {name: sum(getattr(one, name) for one in pulses) for name in COUNTED}
    reports = [one.memory for one in pulses if one.memory is not None]
    return Pulse(time_s=min(one.time_s for one in pulses), memory=_joined_memory(reports) if reports else None, **sums)


def _joined_memory(reports: Sequence[MemoryReport]) -> MemoryReport:
    sums = {name: sum(getattr(one, name) for one in reports) for name in MEASURED}
    return MemoryReport(
        level=max((one.level for one in reports), key=LEVELS.index),
        devices=tuple(chain.from_iterable(one.devices for one in reports)),
        block_bytes=max(one.block_bytes for one in reports),
        events=tuple(sorted(chain.from_iterable(one.events for one in reports))[-MAX_EVENTS:]),
        reading_age_s=max(one.reading_age_s for one in reports),
        **sums,
    )


def fault_of_ready(ready: Ready) -> str:
    """What is wrong with an engine's figures, in words; empty if nothing is."""
    if min(ready.vocab_size, ready.max_model_len) < 1 or min(ready.num_blocks, ready.block_size) < 0:
        return "it reports a window, a vocabulary or a cache of a size that there is not"
    return ""


def fault_of_delta(one: OpenRequest, delta: Delta, vocab_size: int) -> str:
    """What is wrong with ids of this request, in words; empty if nothing is. For most Deltas two comparisons."""
    ids, request = delta.token_ids, one.request
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        return "it sends token ids outside of its vocabulary"
    if len(one.reply_ids) + len(ids) > request.sampling.max_tokens:
        return "it sends more tokens than it was asked for"
    if delta.logprobs is not None or request.sampling.num_logprobs is not None:
        num_logprobs = len(delta.logprobs or ())
        if num_logprobs != (len(ids) if request.sampling.num_logprobs is not None else 0):
            return f"it sends {num_logprobs} logprobs for {len(ids)} tokens"
        if not all(_is_score(score, vocab_size) for score in delta.logprobs or ()):
            return "it sends logprobs that are none"
    if delta.prompt_logprobs:
        num_scored = one.num_scored + len(delta.prompt_logprobs)
        if request.prompt_logprobs is None or num_scored > len(request.token_ids) - request.num_scored:
            return "it sends more logprobs of the prompt than it was asked for"
        if not all(_is_score(score, vocab_size) for score in delta.prompt_logprobs):
            return "it sends logprobs that are none"
    return _fault_of_remarks(one, delta)


def _fault_of_remarks(one: OpenRequest, delta: Delta) -> str:
    num_ids, request = len(delta.token_ids), one.request
    # A reply that goes on here has what another engine wrote in its prompt.
    num_known = len(request.token_ids) + len(request.reply_ids) + len(one.reply_ids) + num_ids
    if delta.cached and not 0 < delta.cached <= num_known:
        return "it found more or less of a prompt cached than there is"
    if delta.forced and not 0 < delta.forced <= num_ids:
        return "it sends a count of forced tokens that is none"
    if delta.stage_times and not all(math.isfinite(time.time_s) for time in delta.stage_times):
        return "it sends times that are none"
    if delta.trace is not None and not all(0 <= place < num_ids for place in delta.trace.forced):
        return "it sends a trace of other tokens"
    return ""


def fault_of_failed(failed: Failed) -> str:
    """What is wrong with a refusal, in words; empty if nothing is."""
    retry_after_s = failed.retry_after_s or 0.0
    return "" if 0.0 <= retry_after_s < math.inf else "it sends a time of a retry that is none"


def fault_of_load(message: Pulse | OtherLoad) -> str:
    """What is wrong with a heartbeat, in words; empty if nothing is. Less than none would draw all requests."""
    if isinstance(message, OtherLoad):
        is_right = message.num_requests >= 0
    else:
        is_right = math.isfinite(message.time_s) and min(getattr(message, name) for name in COUNTED) >= 0
    return "" if is_right else "it sends a heartbeat with counts that are none"


def shortened(failed: Failed) -> Failed:
    """The same with as much of the engine's own words as is passed on."""
    if len(failed.text) <= MAX_TEXT:
        return failed
    return msgspec.structs.replace(failed, text=f"{failed.text[:MAX_TEXT]} …")


def _is_score(score: TokenLogprob, vocab_size: int) -> bool:
    pairs = ((score.token_id, score.logprob), *score.top)
    return all(0 <= id < vocab_size and value < math.inf for id, value in pairs)  # nothing is less than no number
