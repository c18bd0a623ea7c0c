"""torch.OutOfMemoryError at every kind of step and at many places inside it: nobody's reply changes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from server.engine.slots import Slots
from server.messages import Generate, Sampling
from server.model.batch import Batch, Drawn
from server.model.masks import Masks
from server.model.runner import Runner, Ticket
from server.model.shortage import as_memory_error
from tests.checkpoints import Kind
from tests.engine.toys import Bench
from tests.model.drive import BLOCK_SIZE, generate, loaded, prompt_of

NUM_BLOCKS = 60
PLACES = (0.0, 0.1, 0.35, 0.6, 0.8, 0.9, 0.97, 1.0)  # of a step's operations: embedding, layers, logits, draw


class Counting(TorchDispatchMode):
    """Counts operations; at one of them the memory is over."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.num_operations = 0
        self.fail_at = fail_at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.num_operations == self.fail_at:
            self.fail_at = None
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.num_operations += 1
        return func(*args, **(kwargs or {}))


class Exhausted:
    """A runner whose memory is over once at each kind of step: at the given share of that step's operations."""

    def __init__(self, runner: Runner, place: float) -> None:
        self.runner = runner
        self.place = place
        self.failed: set[str] = set()
        self.sizes: dict[str, int] = {}
        self._mode = Counting()
        self._kind = ""

    def launch(self, batch: Batch) -> Ticket:
        self._kind = kind_of(batch)
        size = self.sizes.get(self._kind, self.sizes.get("reply", 0) if "drafts" in self._kind else 0)
        due = size > 0 and self._kind not in self.failed
        self._mode = Counting(int(self.place * (size - 1)) if due else None)
        return self._run(self.runner.launch, batch)

    def finish(self, ticket: Ticket, masks: Masks | None) -> list[Drawn]:
        drawn: list[Drawn] = self._run(self.runner.finish, ticket, masks)
        self.sizes[self._kind] = min(self._mode.num_operations, self.sizes.get(self._kind, 1 << 30))
        return drawn

    def copy_state(self, source: int, target: int) -> None:
        self.runner.copy_state(source, target)

    def _run(self, compute: Any, *arguments: Any) -> Any:
        try:
            with self._mode:
                return compute(*arguments)
        except MemoryError:
            self.failed.add(self._kind)
            raise


def kind_of(batch: Batch) -> str:
    """Prompts, replies, or both, and whether drafts are among them."""
    long = any(len(row.token_ids) > row.num_logits for row in batch.rows)
    short = any(len(row.token_ids) == row.num_logits for row in batch.rows)
    drafts = any(row.num_logits > 1 for row in batch.rows)
    return f"{'prompt' if long else ''} {'reply' if short else ''} {'drafts' if drafts else ''}".strip()


def bench_with(kind: Kind, place: float, draft_tokens: int = 0) -> tuple[Bench, Exhausted]:
    model = loaded(kind)
    slots = Slots(5, 5) if kind == "qwen3_next" else None
    bench = Bench(
        NUM_BLOCKS, BLOCK_SIZE, slots, max_batch_tokens=48, vocab_size=model.vocab_size, draft_tokens=draft_tokens
    )
    exhausted = Exhausted(Runner(model, NUM_BLOCKS, BLOCK_SIZE, 10 if slots else 0), place)
    bench.model = exhausted  # type: ignore[assignment]
    return bench, exhausted


def play(bench: Bench, requests: Sequence[Generate]) -> None:
    """One arrives every few steps, so that there are steps of every kind."""
    for request in requests:
        bench.add(request)
        for _ in range(4):
            bench.step()
    bench.run()
    assert bench.blocks.num_used == 0


def greedy(count: int) -> list[Generate]:
    """Prompts of several lengths."""
    prompts = [prompt_of(20 + 30 * (index % 3), index) for index in range(count)]
    return [
        Generate(f"r{index}", prompt, Sampling(max_tokens=12, temperature=0.0)) for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("kind", "place"), [*(("qwen3", at) for at in PLACES), ("qwen3_next", 0.3), ("qwen3_next", 1.0)]
)
def test_prompts_replies_and_mixtures_survive_it(kind: Kind, place: float) -> None:
    bench, exhausted = bench_with(kind, place)
    requests = greedy(4)
    play(bench, requests)
    assert exhausted.failed >= {"prompt", "reply", "prompt reply"}
    for request in requests:
        assert bench.ids(request.id) == generate(kind, request.token_ids, request.sampling.max_tokens)
        assert bench.end(request.id) == "length"


def test_both_of_torchs_ways_of_having_no_memory_are_understood() -> None:
    with pytest.raises(MemoryError), as_memory_error():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(MemoryError), as_memory_error():
        torch.empty(1 << 60, dtype=torch.uint8)  # what a CPU says
    with pytest.raises(RuntimeError, match="shape"), as_memory_error():
        torch.zeros(2).view(3)
