"""Messages between the API process and the engine process: token ids, never text.

Every message is a frozen, tagged struct; encoded with `msgspec.msgpack`: to the engine one
`ToEngine` a frame, from the engine one list of `FromEngine` a step.
"""

from typing import Literal

import msgspec

Finish = Literal["stop", "length"]
FailureKind = Literal[
    "too_long",  # the prompt and its reply can never fit: 400
    "bad_constraint",  # the constraint does not compile, or is too large to: 400
    "unsupported",  # not supported by this model or engine: 400
    "unknown_model",  # the adapter is not loaded, or no more: 404
    "queue_full",  # the queue is full: 429
    "no_memory",  # not enough memory now; a retry may succeed: 503
    "request_failed",  # only this request failed: 500
]

Stage = Literal[
    "arrived",  # the engine has read the request
    "compiled",  # its constraint is ready; absent if it has none
    "admitted",  # blocks are allocated: prefill begins
    "prefilled",  # the prompt is computed and the first id sampled; absent if the constraint forced the whole reply
    "preempted",  # its blocks were freed for others
    "resumed",  # admitted again after that
    "ended",  # the last id is written; absent if it failed or was aborted
]


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, omit_defaults=False):
    """A tagged record on the wire."""


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """Sampling parameters of one sequence; ranges are checked before it is built."""

    max_tokens: int  # 0: the prompt is computed and nothing is drawn
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    presence_penalty: float = 0.0  # over written ids only
    frequency_penalty: float = 0.0  # over written ids only
    repetition_penalty: float = 1.0  # over prompt and written ids, as transformers does
    seed: int | None = None  # None: the backend chooses one before the request is sent
    logit_bias: dict[int, float] = {}
    num_logprobs: int | None = None  # None: no logprobs; 0: the sampled id's own; up to 20 alternatives
    min_tokens: int = 0  # stop ids are masked before this many ids
    ignore_eos: bool = False  # stop ids do not stop


MAX_SOURCE = 4 * 1024 * 1024  # characters; 128 tools with schemas of reasonable size stay well below
# Arguments of LLParserLimits, for both processes: some 20 ms to compile a hostile grammar, 15 ms a mask, 100 MB of
# lexer states. The step limits are a tenth of llguidance's defaults, with which an ambiguous grammar took half a second
# a mask before it was rejected. They suffice for 128 tools, or for one with a thousand optional arguments.
GRAMMAR_LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 6_000,
    "max_items_in_row": 4_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
}


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """Grammar of the reply, compiled by the engine; applied from the first id after the reasoning phase.

    `source` is in llguidance's Lark dialect, where `<[151657]>` is the token with that id.
    """

    source: str


class ReasoningPhase(msgspec.Struct, frozen=True, array_like=True):
    """Free ids that may come before the constraint begins (a think block, to the API process).

    `open_id` None: the prompt has opened it, the first id is inside. Otherwise it is open only if the first id
    sampled is `open_id`, and the constraint holds from the first id if it is not.
    It ends with `end_id`, or at one of `break_ids`, which is then the first id that the constraint holds for (a call
    that begins before the think block was closed). After `limit` ids inside it, `close_ids` are appended instead of
    sampled; they end with `end_id`.
    """

    end_id: int
    open_id: int | None = None
    limit: int | None = None
    close_ids: tuple[int, ...] = ()
    break_ids: tuple[int, ...] = ()


class Generate(Message, frozen=True, tag="generate"):
    """Request for one sequence; `n` choices are `n` of these with the same prompt, which share its cached blocks.

    `reply_ids` are the first ids of its reply, written by an engine that has died since: the reply goes on behind them,
    and its Deltas hold what follows. Constraint, reasoning phase, penalties, limits and seed count them as written.
    `prompt_logprobs` is the number of alternatives reported for each id of the prompt behind the first `num_scored`;
    the first id of all follows nothing and has no probability. `num_volatile` ids at the end of the prompt are those
    that the next prompt of the conversation may lack: templates open a think block there, and leave it out of a turn
    that is history.
    """

    id: str
    token_ids: list[int]
    sampling: Sampling
    stop_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    reasoning_phase: ReasoningPhase | None = None
    reply_ids: list[int] = []
    cache_salt: str = ""  # cached blocks are shared by sequences with the same salt only
    prompt_logprobs: int | None = None  # None: no logprobs of the prompt
    num_scored: int = 1
    num_volatile: int = 0
    trace: bool = False  # its Deltas say how their ids came about
    session: tuple[tuple[str, str], ...] = ()  # HTTP headers that name the client's session; for routers on the way
    adapter: str = ""  # name of a loaded adapter; empty: the base model alone


class LoadAdapter(Message, frozen=True, tag="load_adapter"):
    """Load the adapter in this folder under a new name; answered by an AdapterChanged.

    Requests for it may be sent at once.
    """

    name: str
    folder: str


class UnloadAdapter(Message, frozen=True, tag="unload_adapter"):
    """Take an adapter away from new requests; answered by an AdapterChanged. Those under way keep it."""

    name: str


class AdapterChanged(Message, frozen=True, tag="adapter_changed"):
    """An adapter is loaded or unloaded, or `fault` says why it is not."""

    name: str
    fault: str = ""


class Abort(Message, frozen=True, tag="abort"):
    """Free this sequence. Unknown ids are ignored: it may just have ended."""

    id: str


class Shutdown(Message, frozen=True, tag="shutdown"):
    """End the engine process, whatever still runs."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log of the probability of `token_id`, and the likeliest alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class StageTime(msgspec.Struct, frozen=True, array_like=True):
    """When a sequence reached a stage, on the monotonic clock, which both processes share."""

    stage: Stage
    time_s: float


class StepTrace(msgspec.Struct, frozen=True, array_like=True):
    """How the ids of one Delta came about: of `drafted` ids its first `accepted` were taken over.

    `forced` are the places in the Delta of ids that the constraint, or the limit of the reasoning phase, allowed no
    alternative to.
    """

    drafted: int = 0
    accepted: int = 0
    forced: tuple[int, ...] = ()


class Delta(Message, frozen=True, tag="delta"):
    """Ids generated since the last Delta. The first may be empty: it means that the request was admitted.

    `token_ids` holds every id, the stop id that ended the sequence included (then `finish` is "stop").
    `logprobs` has one entry for each id if they were requested. `cached` is set in the first Delta only: how many
    prompt ids came from the prefix cache. `forced` counts the ids here that the constraint allowed no alternative to.
    `stage_times` are those since the last Delta, in order. `prompt_logprobs` are those of the next ids of the prompt,
    where they were requested; all of them come before the first id. `trace` is set where the request has it.
    """

    id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    finish: Finish | None = None
    cached: int | None = None
    forced: int = 0
    stage_times: tuple[StageTime, ...] = ()
    prompt_logprobs: list[TokenLogprob] = []
    trace: StepTrace | None = None


class Failed(Message, frozen=True, tag="failed"):
    """The request ends without another Delta. `retry_after_s` is set if a retry may succeed."""

    id: str
    kind: FailureKind
    text: str
    retry_after_s: float | None = None


class Progress(Message, frozen=True, tag="progress"):
    """Loading progress: `fraction` (0 to 1) of `stage` is done."""

    stage: str
    fraction: float


class Ready(Message, frozen=True, tag="ready"):
    """The model is loaded and the engine accepts requests."""

    device: str  # "cpu" or "cuda:0", with the name of the GPU
    dtype: str
    vocab_size: int
    max_model_len: int  # tokens of prompt and reply together
    num_blocks: int
    block_size: int  # tokens
    weight_bytes: int
    load_s: float


class EngineFailed(Message, frozen=True, tag="engine_failed"):
    """The engine cannot start, or cannot go on; `text` says why and what to change. The process exits afterwards."""

    text: str


class DeviceReading(msgspec.Struct, frozen=True):
    """Memory of one device at one moment, in bytes. A figure that the device does not report is None."""

    name: str
    uuid: str
    source: Literal["nvml", "torch", "cgroup", "host"]
    total: int
    used: int
    free: int
    own: int | None = None  # used by this process, if the device reports it
    utilisation: float | None = None  # 0 to 1
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()
    healthy: bool = True
    note: str = ""
    processes: tuple[tuple[int, int], ...] = ()  # process id and its bytes, if the device lists them


class MemoryReport(msgspec.Struct, frozen=True):
    """State and events of the memory guard, for `/v1/memory`. Sizes in bytes, times in seconds since the epoch."""

    level: Literal["calm", "tight", "critical"] = "calm"
    devices: tuple[DeviceReading, ...] = ()
    weight_bytes: int = 0
    activation_bytes: int = 0
    kv_bytes: int = 0
    block_bytes: int = 0
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    ooms: int = 0
    events: tuple[tuple[float, str], ...] = ()
    room_bytes: int = 0  # memory limit of the engine
    allowed_blocks: int = 0  # of the pool, at this level
    fixed_bytes: int = 0  # peak memory of the engine without its blocks
    reading_age_s: float = 0.0  # since the device was read


class Pulse(Message, frozen=True, tag="pulse"):
    """The engine's heartbeat, sent about once a second and at each change of level. Counters only grow."""

    time_s: float
    running: int
    waiting: int
    total_blocks: int
    used_blocks: int  # held by sequences
    cached_blocks: int  # free, with reusable content
    steps: int = 0
    prompt_tokens: int = 0  # computed, not counting cached ones
    cached_tokens: int = 0
    output_tokens: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    hung_grammars: int = 0  # threads that compile a grammar which was refused for taking too long; not a counter
    memory: MemoryReport | None = None
    num_adapters: int = 0  # that requests may name
    running_adapters: tuple[str, ...] = ()  # of sequences that run, each once
    waiting_adapters: tuple[str, ...] = ()  # of sequences that wait


ToEngine = Generate | Abort | LoadAdapter | UnloadAdapter | Shutdown
FromEngine = Delta | Failed | AdapterChanged | Progress | Ready | EngineFailed | Pulse
