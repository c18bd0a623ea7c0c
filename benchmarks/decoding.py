"""Decoding streams driven by the engine's scheduler and pipeline, without its process."""

import time
from collections.abc import Sequence as Many
from typing import cast

from server.engine.blocks import Blocks
from server.engine.budget import Limits
from server.engine.overlap import Pipeline
from server.engine.ports import Grammars
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.messages import Generate, Sampling
from server.model.runner import Runner


class Engine:
    """The scheduler and pipeline with streams that all arrive at once."""

    def __init__(
        self,
        runner: Runner,
        blocks: Blocks,
        prompts: list[list[int]],
        sampling: Sampling | Many[Sampling],
        *,
        overlap: bool,
        max_batch_tokens: int = 0,
    ) -> None:
        """`sampling`: of all streams, or of each. `max_batch_tokens` 0: sixteen times the first prompt."""
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        limits = Limits(
            max_batch_tokens=max_batch_tokens or 16 * len(prompts[0]),
            max_running=len(prompts),
            max_queue=len(prompts),
            max_model_len=1 << 20,
            cache_tokens=blocks.num_blocks * blocks.block_size,
            vocab_size=1 << 20,
            overlap=overlap,
        )
        self._scheduler = Scheduler(limits, blocks, None, time.monotonic)
        self._pipeline = Pipeline(self._scheduler, runner, cast(Grammars, None))
        self._sequences: list[Sequence] = []
        for index, (prompt, one) in enumerate(zip(prompts, settings, strict=True)):
            sequence = self._scheduler.add(Generate(str(index), prompt, one))
            assert sequence is not None
            self._scheduler.begin(sequence)
            self._sequences.append(sequence)

    @property
    def in_prefill(self) -> bool:
        """Whether some stream has no id yet."""
        return not all(sequence.reply.written_ids for sequence in self._sequences)

    @property
    def num_running(self) -> int:
        """Number of unfinished streams that have started."""
        return len(self._scheduler.running)

    @property
    def has_work(self) -> bool:
        """Whether some stream is unfinished."""
        return self._scheduler.has_work

    @property
    def num_written(self) -> int:
        """Ids generated so far, over all streams."""
        return sum(len(sequence.reply.written_ids) for sequence in self._sequences)

    @property
    def num_preemptions(self) -> int:
        """Times that a stream was computed again for lack of blocks."""
        return self._scheduler.counts.preemptions

    def step(self) -> float:
        """Seconds until the next step has been read back. Raises MemoryError."""
        began = time.perf_counter()
        if self._pipeline.in_flight:
            has_memory = self._pipeline.finish_in_flight(lambda: True)
        else:
            step = self._scheduler.next_step(admit=True)
            assert step is not None, "some stream is unfinished"
            has_memory = self._pipeline.compute(step, lambda: True)
        if not has_memory:
            raise MemoryError("a step ran out of memory")
        self._scheduler.collect()
        return time.perf_counter() - began
