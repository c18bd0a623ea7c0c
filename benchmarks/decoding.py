"""Decoding streams driven by the engine's scheduler and pipeline, without its process."""

import time
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
    """The scheduler and pipeline with streams of one length."""

    def __init__(
        self, runner: Runner, blocks: Blocks, prompts: list[list[int]], sampling: Sampling, *, overlap: bool
    ) -> None:
        limits = Limits(
            max_batch_tokens=16 * len(prompts[0]),
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
        for index, prompt in enumerate(prompts):
            sequence = self._scheduler.add(Generate(str(index), prompt, sampling))
            assert sequence is not None
            self._scheduler.begin(sequence)
            self._sequences.append(sequence)

    @property
    def in_prefill(self) -> bool:
        """Whether some stream has no id yet."""
        return not all(sequence.reply.written_ids for sequence in self._sequences)

    @property
    def num_running(self) -> int:
        """Number of unfinished streams."""
        return len(self._scheduler.running)

    def step(self) -> float:
        """Seconds until the next step has been read back."""
        began = time.perf_counter()
        if self._pipeline.in_flight:
            self._pipeline.finish_in_flight(lambda: True)
        else:
            step = self._scheduler.next_step(admit=True)
            assert step is not None and self._pipeline.compute(step, lambda: True)
        self._scheduler.collect()
        return time.perf_counter() - began
