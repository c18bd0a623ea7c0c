"""Memory plan: bytes of weights, activations and KV, and the number of blocks that fit. Pure arithmetic.

    room     = min(memory_fraction x total, free + own - headroom)        what this process may hold at most
    fixed    = overhead + growth + weights + activations                  what it holds before the first token
    KV pool  = room - fixed - recurrent slots - scratch                   cut into blocks
    scratch  = what attention gathers of the cached tokens, one layer at a time: grows with the pool

`own` is what this process holds already, so `free + own` does not change when it allocates or frees memory:
only other processes change it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from server.config_json import computes_float8
from server.memory.adapters import NO_ADAPTERS, AdapterSizes
from server.memory.headers import Tensor, weight_bytes
from server.memory.shape import DTYPE_BYTES, FLOAT32_BYTES, Shape
from server.messages import DeviceReading
from server.settings import EngineSettings

MIB, GIB = 1 << 20, 1 << 30
HEADROOM_SHARE = 0.02  # of the device, left to other processes, so that they can allocate and be seen
LEAST_HEADROOM = 32 * MIB
SHORTEST_CONTEXT = 2048  # tokens; least context to start with if none was requested
MOST_HOST_TOKENS = 1 << 20  # a CPU fills no more, and each block has some bytes of bookkeeping
EXPERT_TOKENS, COPIED_TOGETHER = 512, 16  # as in server/model/cpu/cpp/experts.h
MOST_READ = 32_768  # tokens that attention reads in one product; see model.plan
HOST_GROWTH = 96 * MIB  # a process grows in main memory: threads, grammars, gaps in the heap
HOST_KV_SHARE = 0.5  # of what a host has left; the rest is left to the page cache and other programs
SAMPLING_BYTES = 16  # an entry of a logits row while it is sampled: scaled, weights, and their sums in float64
CHANGED_BYTES = 4  # its float32 copy, where penalties or masks change it
LOGPROB_BYTES = 4  # its log probability, where one is asked for
SORTED_BYTES = 36  # where top_p needs the whole vocabulary sorted: places, values, weights and sums
MOST_SORTED = 16  # rows that are sorted at once


@dataclass(frozen=True, slots=True)
class Demand:
    """Settings that decide memory. `max_model_len` and `kv_cache_tokens` are 0 if not requested."""

    dtype: str
    quantize: str = "none"
    kv_dtype: str = "auto"
    max_model_len: int = 0
    kv_cache_tokens: int = 0
    block_size: int = EngineSettings().block_size
    max_batch_tokens: int = 2048
    max_running: int = 256
    draft_tokens: int = 0
    prefix_cache: bool = True
    memory_fraction: float = 0.9
    adapters: AdapterSizes = NO_ADAPTERS  # all of them together

    @property
    def adapter_scratch(self) -> int:
        """Bytes that the adapters need while a step is computed."""
        return self.adapters.scratch_bytes(self.max_batch_tokens)

    def token_bytes(self, shape: Shape) -> int:
        """Keys and values of one token."""
        return shape.kv_token_bytes(DTYPE_BYTES[self.dtype], in_bytes=self.kv_dtype == "int8")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory in bytes; `own` is held by this process already."""

    total: int
    free: int
    own: int = 0
    is_host: bool = False  # main memory, which the KV cache shares with everything else

    @property
    def growth(self) -> int:
        """Reserve in bytes for growth of this process over time."""
        return HOST_GROWTH if self.is_host else 0

    def usable(self, fraction: float) -> int:
        """Bytes that this process may hold at most."""
        return max(0, min(int(fraction * self.total), self.free + self.own - headroom(self.total)))


@dataclass(frozen=True, slots=True)
class Plan:
    """Division of a device's memory, in bytes; `missing` above 0 means that the model does not fit."""

    demand: Demand
    device: DeviceMemory
    weights: int
    activations: int
    overhead: int
    scratch: int  # of attention over a full pool, or the longest sequence
    token_bytes: int  # KV of one token
    state_bytes: int  # recurrent state of one sequence
    num_slots: int
    num_blocks: int
    max_model_len: int
    least_tokens: int  # KV that must fit
    left: int  # for KV and recurrent state
    missing: int

    @property
    def block_bytes(self) -> int:
        """KV of one block."""
        return self.token_bytes * self.demand.block_size

    @property
    def fits(self) -> bool:
        """Whether the model can be started with these settings."""
        return self.missing == 0


def demand_of(engine: EngineSettings, max_model_len: int, shape: Shape, adapters: AdapterSizes = NO_ADAPTERS) -> Demand:
    """The settings that decide memory; dtype "auto" is the checkpoint's own. `adapters`: as in Demand."""
    return Demand(
        dtype=shape.dtype if engine.dtype == "auto" else engine.dtype,
        quantize=engine.quantize,
        kv_dtype=engine.kv_dtype,
        max_model_len=max_model_len,
        kv_cache_tokens=engine.kv_cache_tokens,
        block_size=engine.block_size,
        max_batch_tokens=engine.max_batch_tokens,
        max_running=engine.max_running,
        draft_tokens=max(0, engine.draft_tokens),
        prefix_cache=engine.prefix_cache,
        memory_fraction=engine.memory_fraction,
        adapters=adapters,
    )


def device_memory_of(reading: DeviceReading) -> DeviceMemory:
    """Convert a reading."""
    return DeviceMemory(reading.total, reading.free, reading.own or 0, reading.source in ("host", "cgroup"))


def headroom(total: int) -> int:
    """Bytes left free for other processes on a device of this size."""
    return max(LEAST_HEADROOM, int(HEADROOM_SHARE * total))


def plan(shape: Shape, tensors: Iterable[Tensor], demand: Demand, device: DeviceMemory, overhead: int = 0) -> Plan:
    """The plan before loading; `overhead` is what the runtime takes before the weights (a CUDA context)."""
    keeps_float8 = computes_float8(on_host=device.is_host)
    weights = weight_bytes(
        tensors,
        dtype=demand.dtype,
        quantize=demand.quantize,
        tied=shape.tied,
        keeps_float8=keeps_float8,
        on_host=device.is_host,
    )
    weights += demand.adapters.numbers * DTYPE_BYTES[demand.dtype]
    activations = activation_bytes(shape, demand, on_host=device.is_host) + demand.adapter_scratch
    return divide(shape, demand, device, weights, activations, max(overhead, device.own))


def divide(shape: Shape, demand: Demand, device: DeviceMemory, weights: int, activations: int, overhead: int) -> Plan:
    """Divide the remaining memory into recurrent slots and KV blocks; sizes estimated or measured."""
    element = DTYPE_BYTES[demand.dtype]
    token_bytes, state_bytes = demand.token_bytes(shape), shape.state_bytes(element)
    usable = device.usable(demand.memory_fraction)
    fixed = overhead + device.growth + weights + activations
    left = max(0, usable - fixed)
    least = max(demand.max_model_len, demand.kv_cache_tokens) or min(shape.max_positions, SHORTEST_CONTEXT)
    least_blocks = math.ceil(least / demand.block_size)
    cost = _Cost(shape, demand, element)
    missing = max(0, fixed + state_bytes + cost.pool(least_blocks) - usable)
    num_slots = 0 if missing else _slots(state_bytes, left, left - cost.pool(least_blocks), demand)
    num_blocks = 0
    if not missing:
        fitting = cost.blocks_in(left - num_slots * state_bytes)
        num_blocks = min(fitting, _useful_blocks(shape, demand, device, left, least))
    return Plan(
        demand=demand,
        device=device,
        weights=weights,
        activations=activations,
        overhead=overhead,
        scratch=cost.scratch(num_blocks),
        token_bytes=token_bytes,
        state_bytes=state_bytes,
        num_slots=num_slots,
        num_blocks=num_blocks,
        max_model_len=demand.max_model_len or min(shape.max_positions, num_blocks * demand.block_size),
        least_tokens=least,
        left=left,
        missing=missing,
    )


def activation_bytes(shape: Shape, demand: Demand, *, on_host: bool = False) -> int:
    """Estimate of the largest sum of temporary tensors in one step: the widest layer, or logits and sampling.

    Used for early refusal and for devices that are not present; a started engine measures. `on_host`: with the CPU
    kernels' copies of a product's inputs.
    """
    element, tokens = DTYPE_BYTES[demand.dtype], demand.max_batch_tokens
    rows = most_rows(tokens, demand.max_running, demand.draft_tokens)
    widest = max(_attention_bytes(shape, element), _mlp_bytes(shape, element), _linear_bytes(shape, element))
    copied = _copied_bytes(shape, tokens) if on_host else 0
    return max(
        tokens * widest + copied, tokens * shape.hidden_size * element + sampling_bytes(shape.vocab_size, rows, element)
    )


def most_rows(max_batch_tokens: int, max_running: int, draft_tokens: int) -> int:
    """Maximum rows of logits of one step: one for each running sequence (`n` choices are `n` sequences, a prompt of
    any length has one). Drafts use the rows that sequences leave free; a single sequence can use all of them."""
    return min(max_batch_tokens, max(max_running, 1 + draft_tokens))


def sampling_bytes(vocab_size: int, rows: int, element: int, num_logprobs: int | None = 0) -> int:
    """Peak of turning `rows` of logits into ids, penalties and masks included; without logprobs it is less."""
    changed = 0 if element == FLOAT32_BYTES else CHANGED_BYTES  # float32 is changed in place
    kept = element + changed + (LOGPROB_BYTES if num_logprobs is not None else 0)
    sampled = rows * (kept + SAMPLING_BYTES)
    sorted_whole = rows * (kept + 4) + min(rows, MOST_SORTED) * SORTED_BYTES
    return max(sampled, sorted_whole) * vocab_size


def context_in(shape: Shape, demand: Demand, num_bytes: int) -> int:
    """Tokens of KV that this much memory holds, in whole blocks."""
    return _Cost(shape, demand, DTYPE_BYTES[demand.dtype]).blocks_in(num_bytes) * demand.block_size


@dataclass(frozen=True, slots=True)
class _Cost:
    """Bytes of a pool of blocks, scratch included."""

    shape: Shape
    demand: Demand
    element: int

    def scratch(self, num_blocks: int) -> int:
        """Decoding rows read their tokens together, shared ones once per row; a prompt chunk reads one row."""
        tokens = num_blocks * self.demand.block_size
        longest = min(tokens, self.demand.max_model_len or self.shape.max_positions)
        read = min(tokens * self.demand.max_running, max(longest, MOST_READ))
        return max(
            read * self.shape.gathered_token_bytes(self.element),
            longest * self.shape.chunk_token_bytes(self.element),
        )

    def pool(self, num_blocks: int) -> int:
        """The blocks and their scratch."""
        tokens = num_blocks * self.demand.block_size
        return tokens * self.demand.token_bytes(self.shape) + self.scratch(num_blocks)

    def blocks_in(self, num_bytes: int) -> int:
        """The most blocks that cost no more than this: `pool` grows with every block, so halving finds it."""
        low, high = 0, max(0, num_bytes) // (self.demand.token_bytes(self.shape) * self.demand.block_size) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.pool(middle) <= num_bytes else (low, middle)
        return low


def _slots(state_bytes: int, left: int, spare: int, demand: Demand) -> int:
    """Recurrent states: one a running sequence and as many snapshots for the prefix cache, in half of what is left.

    One sequence of the requested length has priority over many short ones, so they also stay within `spare`.
    """
    if not state_bytes:
        return 0
    slots = demand.max_running * (2 if demand.prefix_cache else 1)
    return max(1, min(slots, left // 2 // state_bytes, spare // state_bytes))


def _useful_blocks(shape: Shape, demand: Demand, device: DeviceMemory, left: int, least: int) -> int:
    """Upper limit of blocks: `max_running` sequences of full length; on a host also its own limits."""
    if demand.kv_cache_tokens:
        return math.ceil(demand.kv_cache_tokens / demand.block_size)
    longest = demand.max_model_len or shape.max_positions
    tokens = demand.max_running * longest
    if device.is_host:
        share = int(HOST_KV_SHARE * left) // demand.token_bytes(shape)
        tokens = min(tokens, max(longest, MOST_HOST_TOKENS), share)
    return max(tokens // demand.block_size, math.ceil(least / demand.block_size))


def _copied_bytes(shape: Shape, tokens: int) -> int:
    """Inputs of a product in another order, in float32 (`Formats` in server/model/cpu/cpp/products.h)."""
    widest = max(shape.hidden_size, shape.num_heads * shape.head_dim, shape.linear_value_heads * shape.linear_value_dim)
    copied = tokens * max(widest, shape.intermediate_size) * FLOAT32_BYTES
    if shape.num_experts:
        rows = min(tokens, EXPERT_TOKENS) * shape.experts_per_token
        rows += min(rows, shape.num_experts) * (COPIED_TOGETHER - 1)
        copied += rows * max(shape.hidden_size, shape.expert_size) * FLOAT32_BYTES
    return copied


def _attention_bytes(shape: Shape, element: int) -> int:
    """A token's residual, its queries, keys and values in one, and the four copies that norming and rotating them make.

    Long prompts, which a CPU computes in pieces, are counted whole.
    """
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return (shape.hidden_size + 5 * queries + 6 * keys + 3 * shape.head_dim) * element


def _mlp_bytes(shape: Shape, element: int) -> int:
    """A token's residual and input; gate and up in one, and their product, or an output and a copy for each expert."""
    stream = (2 * shape.hidden_size + 2 * shape.head_dim) * element
    dense = stream + 4 * shape.intermediate_size * element
    copies = max(4 * shape.hidden_size, 2 * shape.hidden_size + 3 * shape.expert_size)
    experts = stream + (shape.hidden_size + shape.experts_per_token * copies) * element
    experts += shape.num_experts * (FLOAT32_BYTES + element)
    return max(dense, experts)


def _linear_bytes(shape: Shape, element: int) -> int:
    """A token's residual, projections and convolution; queries, keys, values and decays of every head in float32."""
    if not shape.linear_layers:
        return 0
    values = shape.linear_value_heads * shape.linear_value_dim
    keys = shape.linear_value_heads * shape.linear_key_dim  # repeated up to the value heads
    projected = 2 * shape.hidden_size + 2 * shape.conv_channels + values
    return projected * element + (4 * keys + 3 * values) * FLOAT32_BYTES
