"""The engine's main loop. Every request ends in a Delta with `finish` or a Failed, unless the process ends before.

A request is admitted, which its first Delta reports, when its constraint is compiled and its blocks are allocated:
every refusal comes before that, so that the API can still answer with a status.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.engine.adapters.loader import AdapterLoader
from server.engine.compiler import Compiled, Compiler
from server.engine.overlap import Pipeline
from server.engine.ports import Allowance, Grammars, Guard, Mailbox, Model, Pool
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.messages import (
    Abort,
    AdapterChanged,
    EngineFailed,
    FromEngine,
    Generate,
    LoadAdapter,
    Pulse,
    Shutdown,
    UnloadAdapter,
)

PULSE_S = 1.0
SHORTEST_PULSE_S = 0.1  # between two pulses, however often the allowance changes
BEGIN_S = 0.01  # for sequences whose constraints were compiled, in each step
BLOCKED_S = 0.02  # poll interval while sequences wait for memory


@dataclass(frozen=True, slots=True)
class EngineParts:
    """Model, memory pool, grammars and memory guard of an engine; None: no adapter is loaded while it runs."""

    model: Model
    pool: Pool
    grammars: Grammars
    guard: Guard
    adapters: AdapterLoader | None = None


class Loop:
    """Reads messages, computes steps and sends results until Shutdown."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        parts: EngineParts,
        compiler: Compiler,
        clock: Callable[[], float],
    ) -> None:
        self._mailbox = mailbox
        self._scheduler = scheduler
        self._parts = parts
        self._compiler = compiler
        self._clock = clock
        self._pipeline = Pipeline(scheduler, parts.model, parts.grammars)
        self._num_backed_blocks = scheduler.blocks.num_blocks  # blocks that the pool has memory for
        self._applied_limits = (self._num_backed_blocks, True, False)
        self._pulsed_s = -PULSE_S
        self._closing = False

    def run(self) -> None:
        """Run until Shutdown. Before an exception is raised, what is written is sent, and an EngineFailed."""
        try:
            while not self._closing:
                self._read_mail()
                self._step()
                self._send_mail()
                self._compiler.check()
        except Exception as error:
            self._mailbox.send([*self._scheduler.collect(), EngineFailed(f"{type(error).__name__}: {error}")])
            raise

    # -- mail ------------------------------------------------------------------------------------------------------

    def _read_mail(self) -> None:
        for message in self._mailbox.receive(self._poll_timeout_s()):
            match message:
                case Generate():
                    self._accept(message)
                case Abort(id=id):
                    self._abort(id)
                case LoadAdapter() | UnloadAdapter():
                    self._change_adapter(message)
                case Shutdown():
                    self._closing = True
        self._finish_adapters()
        self._compiler.wait()
        began_s = self._clock()
        for sequence, compiled in self._compiler.finished():
            self._begin(sequence, compiled)
            if self._clock() - began_s >= BEGIN_S:
                return

    def _poll_timeout_s(self) -> float:
        """How long to wait for messages; 0 while sequences run."""
        if self._scheduler.running or self._compiler.has_finished:
            return 0.0
        return BLOCKED_S if self._scheduler.has_work else max(0.0, self._pulsed_s + PULSE_S - self._clock())

    def _change_adapter(self, message: LoadAdapter | UnloadAdapter) -> None:
        loader = self._parts.adapters
        if loader is None:
            changed: AdapterChanged | None = AdapterChanged(message.name, "this engine loads no adapters")
        else:
            changed = loader.load(message) if isinstance(message, LoadAdapter) else loader.unload(message.name)
        if changed is not None:
            self._mailbox.send([changed])

    def _finish_adapters(self) -> None:
        """Begin to use what has been read, with the requests that waited for it."""
        if self._parts.adapters is None:
            return
        changed, requests = self._parts.adapters.finish()
        if changed:
            self._mailbox.send([*changed])
        for request in requests:
            self._accept(request)

    def _abort(self, id: str) -> None:
        self._scheduler.abort(id)
        if self._parts.adapters is not None:
            self._parts.adapters.abort(id)

    def _accept(self, request: Generate) -> None:
        if self._parts.adapters is not None and self._parts.adapters.defer(request):
            return
        sequence = self._scheduler.add(request)
        if sequence is not None:
            self._compiler.submit(sequence)

    def _begin(self, sequence: Sequence, compiled: Compiled) -> None:
        if compiled.refusal is not None:
            self._scheduler.fail(sequence, "bad_constraint", compiled.refusal)
        else:
            if sequence.request.constraint is not None:
                sequence.record_stage("compiled")
            self._scheduler.begin(sequence, compiled.matcher, compiled.closer)

    def _send_mail(self) -> None:
        mail: list[FromEngine] = [*self._scheduler.collect()]
        if self._clock() - self._pulsed_s >= PULSE_S:
            self._pulsed_s = self._clock()
            mail.append(self._pulse())
        if mail:
            self._mailbox.send(mail)

    def _pulse(self) -> Pulse:
        scheduler, blocks, counts = self._scheduler, self._scheduler.blocks, self._scheduler.counts
        return Pulse(
            time_s=self._clock(),
            running=len(scheduler.running),
            waiting=len(scheduler.queue),
            total_blocks=blocks.num_blocks,
            used_blocks=blocks.num_used,
            cached_blocks=blocks.num_cached,
            steps=counts.steps,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            output_tokens=counts.output_tokens,
            forced_tokens=counts.forced_tokens,
            drafted_tokens=counts.drafted_tokens,
            accepted_tokens=counts.accepted_tokens,
            preemptions=counts.preemptions,
            hung_grammars=self._compiler.num_hung,
            memory=self._parts.guard.report(),
            num_adapters=scheduler.adapters.num_listed,
            running_adapters=_adapters_of(scheduler.running),
            waiting_adapters=_adapters_of(scheduler.queue.sequences),
        )

    # -- step ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self._pipeline.in_flight:
            has_memory = self._pipeline.finish_in_flight(self._memory_unchanged)
        else:
            allowance = self._apply_allowance()
            step = self._scheduler.next_step(admit=allowance.admit)
            if step is None:
                return
            self._send_mail()  # admissions are reported before the step is computed
            has_memory = self._pipeline.compute(step, self._memory_unchanged)
        if not has_memory:
            self._parts.guard.out_of_memory()

    def _memory_unchanged(self) -> bool:
        """Whether the guard's limits are those applied: memory must not move while a step is in flight."""
        if self._scheduler.blocks.num_beyond_limit:
            return False
        return _limits_of(self._read_allowance()) == self._applied_limits

    def _read_allowance(self) -> Allowance:
        blocks = self._scheduler.blocks
        # A single block beyond the limit keeps the pool from releasing memory.
        num_used = blocks.limit + blocks.num_beyond_limit if blocks.num_beyond_limit else blocks.num_used
        return self._parts.guard.allowance(num_used)

    def _apply_allowance(self) -> Allowance:
        """Resize the blocks, and the memory behind them, to what the guard allows."""
        blocks, pool = self._scheduler.blocks, self._parts.pool
        allowance = self._read_allowance()
        limits = _limits_of(allowance)
        if limits == self._applied_limits and not blocks.num_beyond_limit:
            return allowance
        if allowance.blocks > self._num_backed_blocks:
            self._num_backed_blocks = pool.restore(allowance.blocks)
        limit = min(allowance.blocks, self._num_backed_blocks)
        self._pipeline.copy(self._scheduler.resize(limit, preempt=allowance.preempt))
        if blocks.limit < self._num_backed_blocks and not blocks.num_beyond_limit:
            pool.release(blocks.limit)
            self._num_backed_blocks = blocks.limit
        if limits != self._applied_limits and self._clock() - self._pulsed_s >= SHORTEST_PULSE_S:
            self._pulsed_s = -PULSE_S  # report the change at once
        self._applied_limits = limits
        return allowance


def _adapters_of(sequences: Iterable[Sequence]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.adapter.name for one in sequences if one.adapter is not None))


def _limits_of(allowance: Allowance) -> tuple[int, bool, bool]:
    return allowance.blocks, allowance.admit, allowance.preempt
