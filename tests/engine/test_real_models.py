"""Scheduler and runner together: whatever happens around a sequence, it writes what transformers' generate() writes."""

import random
from collections.abc import Sequence

import pytest

from server.engine.slots import Slots
from server.messages import Constraint, Generate, Sampling
from server.model.batch import Batch
from server.model.runner import Runner, Ticket
from server.model.sampling.grammar import Masks
from server.model.sampling.sampler import PendingSamples
from tests.checkpoints import Kind
from tests.engine.toys import Bench
from tests.model.drive import BLOCK_SIZE, generate, grammars, loaded, prompt_of

PLAIN: tuple[Kind, ...] = ("qwen2", "qwen3", "qwen3_moe", "llama")
HYBRID: tuple[Kind, ...] = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
SHOWN = ("qwen3", "qwen3_5")  # without overlap; the other kinds in the long tests
pytestmark = pytest.mark.timeout(600)  # the first one makes a tokenizer and checkpoints, on busy cores slowly
NUM_BLOCKS = 40  # of 16 tokens: some five of the sequences below


class Failing:
    """A runner whose memory runs out at these steps: at even ones before they are computed, at odd ones after."""

    def __init__(self, runner: Runner, steps: range) -> None:
        self.runner = runner
        self.steps = steps
        self.num_calls = 0
        self.num_overlapped = 0

    def launch(self, batch: Batch) -> Ticket:
        self.num_calls += 1
        if self.num_calls in self.steps and self.num_calls % 2 == 0:
            raise MemoryError
        return self.runner.launch(batch)

    def launch_after(self, batch: Batch, pending: PendingSamples, lines: Sequence[int]) -> Ticket:
        self.num_overlapped += 1
        return self.runner.launch_after(batch, pending, lines)

    def sample(self, ticket: Ticket, batch: Batch, masks: Masks | None) -> PendingSamples:
        if self.num_calls in self.steps and self.num_calls % 2 == 1:
            raise MemoryError
        return self.runner.sample(ticket, batch, masks)

    def copy_state(self, source: int, target: int) -> None:
        self.runner.copy_state(source, target)

    def copy_block(self, source: int, target: int) -> None:
        self.runner.copy_block(source, target)

    def move_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.runner.move_blocks(sources, targets)


def bench_with(kind: Kind, *, fails: range = range(0), draft_tokens: int = 0, overlap: bool = False) -> Bench:
    """A bench with the tiny checkpoint of this kind; hybrids get five slots and five snapshots."""
    model = loaded(kind)
    slots = Slots(5, 5) if kind in HYBRID else None
    bench = Bench(
        NUM_BLOCKS,
        BLOCK_SIZE,
        slots=slots,
        max_batch_tokens=72,
        max_running=12,
        vocab_size=model.vocab_size,
        draft_tokens=draft_tokens,
        overlap=overlap,
    )
    bench.model = Failing(Runner(model, NUM_BLOCKS, BLOCK_SIZE, 10 if slots else 0), fails)  # type: ignore[assignment]
    return bench


def requests_for(count: int) -> list[Generate]:
    """Prompts of many lengths; two in three begin with one of two heads."""
    heads: tuple[list[int], ...] = (prompt_of(70, 101), prompt_of(40, 102), [])
    return [
        Generate(
            f"r{index}",
            [*heads[index % 3], *prompt_of(3 + (index * 17) % 60, index)],
            Sampling(max_tokens=6 + (index * 5) % 20, temperature=0.0),
        )
        for index in range(count)
    ]


def play(bench: Bench, requests: list[Generate], aborted: set[str]) -> None:
    """Arrivals one by one between steps; some are aborted soon after, some lose their blocks for a while."""
    for index, request in enumerate(requests):
        bench.add(request)
        bench.step()
        if index % 4 == 3:
            bench.resize(NUM_BLOCKS if index % 8 == 7 else NUM_BLOCKS // 3, preempt=True)
        if index % 5 == 4 and f"r{index - 2}" in aborted:
            bench.scheduler.abort(f"r{index - 2}")
    bench.resize(NUM_BLOCKS, preempt=False)
    bench.run()


@pytest.mark.parametrize(
    ("kind", "overlap"),
    [
        ("qwen3", False),
        ("qwen3_5", False),
        ("qwen3_moe", True),
        ("qwen3_next", True),
        *(pytest.param(kind, False, marks=pytest.mark.long) for kind in (*PLAIN, *HYBRID) if kind not in SHOWN),
        pytest.param("qwen3", True, marks=pytest.mark.long),
    ],
)
def test_greedy_equals_generate_with_arrivals_prefix_hits_preemptions_and_aborts(kind: Kind, overlap: bool) -> None:
    bench = bench_with(kind, overlap=overlap)
    requests = requests_for(16)
    aborted = {f"r{index - 2}" for index in range(len(requests)) if index % 10 == 4}
    play(bench, requests, aborted)
    assert bench.scheduler.counts.cached_tokens > 0
    assert bench.scheduler.counts.preemptions > 0
    assert (bench.model.num_overlapped > 0) == (overlap and kind in PLAIN)
    for request in requests:
        want = generate(kind, request.token_ids, request.sampling.max_tokens)
        assert bench.ids(request.id) == want[: len(bench.ids(request.id))]
        assert len(bench.ids(request.id)) == len(want) or request.id in aborted
    assert bench.blocks.num_used == 0


@pytest.mark.parametrize(
    ("kind", "fails"),
    [("qwen3", range(1, 1000, 3)), ("qwen3", range(4, 8)), ("qwen3_next", range(3, 60, 11))],
)
def test_memory_that_runs_out_again_and_again_changes_no_reply(kind: Kind, fails: range) -> None:
    bench = bench_with(kind, fails=fails)
    requests = requests_for(10)
    play(bench, requests, set())
    for request in requests:
        assert bench.ids(request.id) == generate(kind, request.token_ids, request.sampling.max_tokens)


def test_drafts_copied_from_the_prompt_change_no_reply() -> None:
    bench = bench_with("qwen3", draft_tokens=4)
    requests = requests_for(12)
    for request in requests:
        truth = generate("qwen3", request.token_ids, request.sampling.max_tokens)
        request.token_ids[:0] = [*request.token_ids, *truth]  # what it once wrote stands in the prompt
    play(bench, requests, set())
    assert bench.scheduler.counts.drafted_tokens > 0
    for request in requests:
        assert bench.ids(request.id) == generate("qwen3", request.token_ids, request.sampling.max_tokens)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_5"])
def test_constrained_rows_keep_to_their_grammar_and_free_rows_do_not_notice(kind: Kind) -> None:
    bench = bench_with(kind)
    bench.grammars = grammars()  # type: ignore[assignment]
    choices = random.Random(1)
    requests = requests_for(8)
    bound = {
        request.id: Generate(
            f"bound-{request.id}",
            request.token_ids,
            Sampling(max_tokens=60, temperature=1.0, seed=choices.randrange(100)),
            constraint=Constraint("start: /(red|green|blue) (one|two|three) times/"),
        )
        for request in requests
    }
    play(bench, [one for request in requests for one in (request, bound[request.id])], set())
    for request in requests:
        assert bench.ids(request.id) == generate(kind, request.token_ids, request.sampling.max_tokens)
        assert bench.end(f"bound-{request.id}") == "stop"
    assert bench.scheduler.counts.forced_tokens > 0
