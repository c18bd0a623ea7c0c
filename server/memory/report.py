"""Report of a memory plan: its table, and the options that would make a model fit."""

import dataclasses
from dataclasses import dataclass

from server.config_json import QUANTIZED_WIDTHS
from server.errors import CannotStart
from server.memory.budget import GIB, MIB, Demand, Plan, context_in, plan
from server.memory.headers import Tensor, quantizable_bits
from server.memory.shape import DTYPE_BYTES, Shape

SHORTEST_OFFER = 256  # tokens; a shorter context is not offered
SMALL_BATCH, FEW_RUNNING, LARGE_FRACTION = 512, 16, 0.95


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One line of the table."""

    label: str
    amount: str
    note: str = ""


def rows(found: Plan) -> tuple[ReportRow, ...]:
    """Rows of a plan's table: total, usable, what is subtracted, what is left for KV."""
    demand, device = found.demand, found.device
    usable = device.usable(demand.memory_fraction)
    lines = [
        ReportRow("device", size(device.total), f"{size(device.free)} free"),
        ReportRow("room", size(usable), f"{demand.memory_fraction:g} of it, less what others hold"),
        ReportRow(
            "weights", size(found.weights), demand.dtype + ("" if demand.quantize == "none" else f", {demand.quantize}")
        ),
        *_adapter_row(demand),
        ReportRow(
            "activations",
            size(found.activations),
            f"{demand.max_batch_tokens} tokens, {demand.max_running} rows of logits",
        ),
        ReportRow("runtime", size(found.overhead + device.growth), "held before the weights, and growth"),
        ReportRow(
            "KV per 1k tokens",
            size(1024 * found.token_bytes),
            f"{size(found.block_bytes)} a block of {demand.block_size}"
            + ("" if demand.kv_dtype == "auto" else f", {demand.kv_dtype}"),
        ),
    ]
    if found.state_bytes:
        lines.append(ReportRow("state per sequence", size(found.state_bytes), f"{found.num_slots} of them"))
    if found.fits:
        tokens = found.num_blocks * demand.block_size
        lines.append(
            ReportRow("free for KV", size(found.left), f"{tokens} tokens and {size(found.scratch)} of scratch")
        )
        lines.append(ReportRow("longest sequence", f"{found.max_model_len} tokens"))
    else:
        lines.append(ReportRow("missing", size(found.missing), f"for {found.least_tokens} tokens of context"))
    return tuple(lines)


def _adapter_row(demand: Demand) -> tuple[ReportRow, ...]:
    if not demand.adapters.numbers:
        return ()
    note = f"among the weights, and {size(demand.adapter_scratch)} among the activations"
    return (ReportRow("adapters", size(demand.adapters.numbers * DTYPE_BYTES[demand.dtype]), note),)


def as_text(lines: tuple[ReportRow, ...]) -> str:
    """The table for a log or an error: one row a line, columns aligned."""
    label = max(len(line.label) for line in lines)
    amount = max(len(line.amount) for line in lines)
    return "\n".join(f"  {line.label:<{label}}  {line.amount:>{amount}}  {line.note}".rstrip() for line in lines)


def refuse(shape: Shape, tensors: tuple[Tensor, ...], found: Plan) -> CannotStart:
    """Error for a plan that does not fit: the table, and the options that would make it fit."""
    offers = remedies(shape, tensors, found)
    advice = "\n".join(f"  {offer}" for offer in offers)
    ending = f"what would make it fit:\n{advice}" if offers else "no option makes it fit; take a larger device"
    return CannotStart(f"the model does not fit, {size(found.missing)} are missing:\n{as_text(rows(found))}\n{ending}")


def remedies(shape: Shape, tensors: tuple[Tensor, ...], refused: Plan) -> tuple[str, ...]:
    """Options under which the refused plan fits, with their numbers: one change each, or else all together."""
    demand = refused.demand
    smaller = dataclasses.replace(
        demand,
        max_batch_tokens=min(SMALL_BATCH, demand.max_batch_tokens),
        max_running=min(FEW_RUNNING, demand.max_running),
    )
    small_flags = f"--max-batch-tokens {smaller.max_batch_tokens} --max-running {smaller.max_running}"
    fraction = max(LARGE_FRACTION, demand.memory_fraction)
    most_bits = 0 if demand.quantize == "int4" else quantizable_bits(tensors, on_host=refused.device.is_host)
    widths = tuple(name for name, width in QUANTIZED_WIDTHS.items() if width < most_bits)
    narrowest = widths[-1] if widths else demand.quantize
    single = [
        ("", demand),
        ("--dtype bfloat16", dataclasses.replace(demand, dtype="bfloat16")),
        *((f"--quantize {name}", dataclasses.replace(demand, quantize=name)) for name in widths),
        *([("--kv-dtype int8", dataclasses.replace(demand, kv_dtype="int8"))] if _takes_bytes(shape, refused) else []),
        (small_flags, smaller),
        (f"--memory-fraction {fraction:g}", dataclasses.replace(demand, memory_fraction=fraction)),
    ]
    together = dataclasses.replace(smaller, dtype="bfloat16", quantize=narrowest)
    if demand.dtype != "float32":
        del single[1]
        together = dataclasses.replace(together, dtype=demand.dtype)
    changed = [(flags, change) for flags, change in single if not flags or change != demand]
    offers = [offer for flags, change in changed if (offer := _offer(shape, tensors, refused, flags, change))]
    if offers:
        return tuple(offers)
    flags = f"--dtype {together.dtype} " + f"--quantize {narrowest} " * bool(widths) + small_flags
    last = _offer(shape, tensors, refused, flags, together)
    return (last,) if last else ()


def _takes_bytes(shape: Shape, refused: Plan) -> bool:
    """Whether the kernels of the device may keep keys and values as bytes (`supports_pool` of model/cpu/native.py)."""
    return not refused.device.is_host or (refused.demand.dtype != "float16" and shape.head_dim % 32 == 0)


def size(num_bytes: int) -> str:
    """Format a size in GiB, MiB or KiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB" if num_bytes >= MIB else f"{num_bytes / 1024:.1f} KiB"


def _offer(shape: Shape, tensors: tuple[Tensor, ...], refused: Plan, flags: str, change: Demand) -> str | None:
    """Describe the change if the model fits with it, with a shorter context if needed; None if not."""
    found = plan(shape, tensors, change, refused.device, refused.overhead)
    if not found.fits:
        context = context_in(shape, change, found.left - found.state_bytes)
        if context < SHORTEST_OFFER:
            return None
        option = "--kv-cache-tokens" if change.kv_cache_tokens > change.max_model_len else "--max-model-len"
        flags = f"{flags} {option} {context}".strip()
        shorter = dataclasses.replace(
            change,
            max_model_len=min(context, change.max_model_len or context),
            kv_cache_tokens=min(context, change.kv_cache_tokens),
        )
        found = plan(shape, tensors, shorter, refused.device, refused.overhead)
    return (
        f"{flags}: weights {size(found.weights)}, activations {size(found.activations)}, "
        f"KV for {found.num_blocks * change.block_size} tokens"
    )
