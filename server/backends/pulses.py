"""Sums over several engines: their figures at the start, their heartbeats, their memory."""

from collections.abc import Sequence
from itertools import chain

from server.messages import MemoryReport, Pulse, Ready

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
