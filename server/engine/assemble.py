"""Build an engine from its configuration: the part of the composition root that imports torch."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from server.engine.adapters.holder import HeldAdapter, ModelAdapters
from server.engine.adapters.loader import AdapterLoader, install_all
from server.engine.adapters.table import AdapterTable
from server.engine.blocks import Blocks
from server.engine.budget import Limits
from server.engine.compiler import Compiler
from server.engine.loop import EngineParts, Loop
from server.engine.ports import Mailbox
from server.engine.scheduler import Scheduler
from server.engine.slots import Slots
from server.gguf.header import read_header
from server.gguf.tokenizer import tokenizer_json
from server.memory.budget import Plan, most_rows
from server.memory.guard import AllocatorStats, Guard, GuardIO
from server.memory.probe import DeviceSelector, TorchFigures
from server.memory.start import Measured, open_probe, refuse_early, replan
from server.memory.watcher import Probe, Watcher
from server.messages import Progress, Ready
from server.model.attention.mapped_memory import mapped_bytes
from server.model.graphs.decode_graphs import padded_sizes
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import choose_device, load
from server.model.profile import StepSize, measure_step
from server.model.runner import Runner
from server.model.sampling.grammar import LlguidanceGrammars
from server.runtime.heap import trim_heap
from server.settings import EngineSettings, read_environment

log = logging.getLogger(__name__)

DRAFTS_ON_CPU = 4


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sent by the API process as JSON. `max_model_len` 0 is the model's own; `stop_ids` may end any constraint."""

    checkpoint: str
    max_model_len: int
    engine: EngineSettings
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """A loop to run, the message that announces it, and how to stop its threads."""

    loop: Loop
    ready: Ready
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded model, its memory plan, its runner, its grammar compiler and its adapters."""

    loaded: LoadedModel
    plan: Plan
    runner: Runner
    grammars: LlguidanceGrammars
    holder: ModelAdapters
    adapters: tuple[tuple[str, HeldAdapter], ...]  # of the start, by name


def assemble(config: EngineConfig, mailbox: Mailbox) -> Engine:
    """Load the model and build everything around it; Progress goes to the mailbox. Raises CannotStart."""
    began_s = time.monotonic()
    device = choose_device(config.engine.device)
    probe = open_probe(device.type, config.engine.memory_probe, _select_device(device))
    parts = _load_parts(config, probe, mailbox)
    watcher = Watcher(probe)
    guard = Guard.for_engine(parts.plan, _guard_io(device, watcher))
    compiler = Compiler(parts.grammars, mailbox.wake, time.monotonic)
    table = AdapterTable()
    install_all(parts.holder, table, parts.adapters)
    scheduler = _build_scheduler(config.engine, parts, table)
    loader = AdapterLoader(parts.holder, table, guard.reserve, mailbox.wake)
    step_parts = EngineParts(parts.runner, parts.runner, parts.grammars, guard, loader)
    limits = scheduler.limits
    ready = Ready(
        device=_name(device),
        dtype=str(parts.loaded.dtype).removeprefix("torch."),
        vocab_size=parts.loaded.vocab_size,
        max_model_len=min(limits.max_model_len, limits.cache_tokens),
        num_blocks=parts.plan.num_blocks,
        block_size=config.engine.block_size,
        weight_bytes=parts.plan.weights,
        load_s=time.monotonic() - began_s,
    )

    def close() -> None:
        watcher.close()
        compiler.close()
        loader.close()

    return Engine(Loop(mailbox, scheduler, step_parts, compiler, time.monotonic), ready, close)


def _load_parts(config: EngineConfig, probe: Probe, mailbox: Mailbox) -> Parts:
    checkpoint, settings = Path(config.checkpoint), config.engine
    estimate = refuse_early(checkpoint, config.max_model_len, settings, probe.read()[0])
    with ThreadPoolExecutor(1) as beside:
        vocab_size, stop_ids = estimate.shape.vocab_size, config.stop_ids
        indexing = beside.submit(lambda: LlguidanceGrammars(read_tokenizer(checkpoint), vocab_size, stop_ids))
        sizes = padded_sizes(settings.max_running) if settings.cuda_graphs else ()
        loaded = load(checkpoint, settings, lambda fraction: mailbox.send([Progress("loading weights", fraction)]))
        rows = most_rows(settings.max_batch_tokens, settings.max_running, _draft_tokens(settings, loaded.device))
        largest = StepSize(settings.max_batch_tokens, rows, settings.block_size, max(sizes, default=0))
        holder = ModelAdapters(loaded, settings.max_batch_tokens)
        adapters = tuple(holder.read_all(settings.adapter))
        weight_bytes = loaded.weight_bytes + sum(adapter.adapted.num_bytes for _, adapter in adapters)
        measured = Measured(weight_bytes, measure_step(loaded, largest))
        grammars = indexing.result()  # before memory is read: it must include everything that stays allocated
        trim_heap()
        plan = replan(estimate, probe.read()[0], measured)
        runner = Runner(loaded, plan.num_blocks, settings.block_size, plan.num_slots)
        holder.use(runner)
        if sizes:
            runner.capture_graphs(sizes)
        if loaded.device.type == "cuda":
            log.info("attention and decode steps: %s", runner.describe())
        return Parts(loaded, plan, runner, grammars, holder, adapters)


def read_tokenizer(checkpoint: Path) -> bytes:
    """The content of tokenizer.json, of a folder or as a GGUF file has it."""
    if checkpoint.is_file():
        return tokenizer_json(read_header(checkpoint, vocabulary=True)).encode()
    return (checkpoint / "tokenizer.json").read_bytes()


def _build_scheduler(settings: EngineSettings, parts: Parts, adapters: AdapterTable) -> Scheduler:
    plan = parts.plan
    limits = Limits(
        max_batch_tokens=settings.max_batch_tokens,
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        max_model_len=plan.max_model_len,
        cache_tokens=plan.num_blocks * settings.block_size,
        vocab_size=parts.loaded.vocab_size,
        fast_forward=settings.fast_forward,
        draft_tokens=_draft_tokens(settings, parts.loaded.device),
        copies_blocks=parts.loaded.device.type == "cpu",  # on a GPU recomputing a few tokens is free
        overlap=parts.loaded.device.type != "cpu",  # on a CPU host and device are the same
    )
    slots = None
    if parts.loaded.recurrent is not None:
        num_snapshots = plan.num_slots // 2 if settings.prefix_cache else 0
        slots = Slots(plan.num_slots - num_snapshots, num_snapshots)
    blocks = Blocks(plan.num_blocks, settings.block_size, caching=settings.prefix_cache)
    return Scheduler(limits, blocks, slots, time.monotonic, adapters)


def _draft_tokens(settings: EngineSettings, device: torch.device) -> int:
    """As set, or the device's default: on a CPU five tokens cost little more than one; a GPU needs CUDA graphs."""
    if settings.draft_tokens >= 0:
        return settings.draft_tokens
    return DRAFTS_ON_CPU if device.type == "cpu" else 0


def _guard_io(device: torch.device, watcher: Watcher) -> GuardIO:
    def release_caches() -> None:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        trim_heap()

    counters = torch.cuda.memory_allocated, torch.cuda.memory_reserved

    def figures() -> AllocatorStats:
        return AllocatorStats(*(function(device) + mapped_bytes(device) for function in counters))

    return GuardIO(
        latest=watcher.latest,
        clock=time.monotonic,
        epoch_s=time.time() - time.monotonic(),
        release_caches=release_caches,
        figures=figures if device.type == "cuda" else AllocatorStats,
    )


def _select_device(device: torch.device) -> DeviceSelector:
    if device.type != "cuda":
        return DeviceSelector()
    properties = torch.cuda.get_device_properties(device)

    def figures() -> TorchFigures:
        free, total = torch.cuda.mem_get_info(device)
        return TorchFigures(total, free, torch.cuda.memory_reserved(device) + mapped_bytes(device))

    return DeviceSelector(
        index=device.index,
        uuid=str(getattr(properties, "uuid", "")),
        visible=read_environment().get("CUDA_VISIBLE_DEVICES"),
        figures=figures,
    )


def _name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
