"""torch.OutOfMemoryError at every kind of step and at many places inside it: nobody's reply changes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from server.engine.slots import Slots
from server.messages import Constraint, Generate, Sampling, TokenLogprob
from server.model.batch import Batch, SampledTokens
from server.model.device import as_memory_error
from server.model.runner import Runner, Ticket
from server.model.sampling.grammar import Masks
from server.model.sampling.sampler import PendingSamples
from tests.caches import cached
from tests.checkpoints import Kind, qwen_vocabulary
from tests.engine.toys import Bench
from tests.model.drive import BLOCK_SIZE, generate, grammars, loaded, prompt_of

NUM_BLOCKS = 60
PLACES = (0.35, 1.0)  # of a step's operations: embedding, layers, logits, sampling
MORE_PLACES = (0.0, 0.1, 0.6, 0.8, 0.9, 0.97)


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


@dataclass(frozen=True)
class CountedSamples:
    """Pending samples whose reading is counted too."""

    read: Callable[[], list[SampledTokens]]


class Exhausted:
    """A runner whose memory is over once at each kind of step: at the given share of that step's operations.

    With `only`, at kinds whose name has this in it.
    """

    def __init__(self, runner: Runner, place: float, only: str = "") -> None:
        self.runner = runner
        self.place = place
        self.only = only
        self.failed: set[str] = set()
        self.sizes: dict[str, int] = {}
        self._mode = Counting()
        self._kind = ""

    def launch(self, batch: Batch) -> Ticket:
        self._kind = kind_of(batch)
        size = self.sizes.get(self._kind, self.sizes.get("reply", 0) if "drafts" in self._kind else 0)
        due = size > 0 and self._kind not in self.failed and self.only in self._kind
        self._mode = Counting(int(self.place * (size - 1)) if due else None)
        return self._run(self.runner.launch, batch)

    def sample(self, ticket: Ticket, batch: Batch, masks: Masks | None) -> "CountedSamples":
        pending: PendingSamples = self._run(self.runner.sample, ticket, batch, masks)
        return CountedSamples(lambda: self._read(pending))

    def _read(self, pending: PendingSamples) -> list[SampledTokens]:
        sampled: list[SampledTokens] = self._run(pending.read)
        self.sizes[self._kind] = min(self._mode.num_operations, self.sizes.get(self._kind, 1 << 30))
        return sampled

    def copy_state(self, source: int, target: int) -> None:
        self.runner.copy_state(source, target)

    def copy_block(self, source: int, target: int) -> None:
        self.runner.copy_block(source, target)

    def move_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.runner.move_blocks(sources, targets)

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
    runner = Runner(model, NUM_BLOCKS, BLOCK_SIZE, 10 if slots else 0)
    exhausted = Exhausted(runner, place, "drafts" if draft_tokens else "")  # after many failures nothing is drafted
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
    ("kind", "place"),
    [
        *(("qwen3", at) for at in PLACES),
        *(pytest.param("qwen3", at, marks=pytest.mark.long) for at in MORE_PLACES),
        ("qwen3_next", 0.3),
        pytest.param("qwen3_next", 1.0, marks=pytest.mark.long),
    ],
)
def test_prompts_replies_and_mixtures_survive_it(kind: Kind, place: float) -> None:
    bench, exhausted = bench_with(kind, place)
    requests = greedy(4)
    play(bench, requests)
    assert exhausted.failed >= {"prompt", "reply", "prompt reply"}
    for request in requests:
        assert bench.ids(request.id) == generate(kind, request.token_ids, request.sampling.max_tokens)
        assert bench.end(request.id) == "length"


Written = dict[str, tuple[list[int], str | None, list[TokenLogprob]]]
NEVER = 2.0  # a place beyond the end of every step
CITY = Constraint(r'start: /\{"city": "(Paris|Rome|Oslo)", "sure": (true|false)\}/')
# Every way of sampling: by temperature alone, cut by each of the three, with penalties that look back, with log
# probabilities. All leave few ids to choose from: a step that is tried again has other batch mates, with which matrix
# products round in another way, and among thousands of equally likely ids that alone moves a sample.
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.2},
    {"temperature": 0.2, "top_p": 0.9, "frequency_penalty": 0.3, "num_logprobs": 2},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
    {"temperature": 0.3, "min_p": 0.05, "presence_penalty": 0.5, "num_logprobs": 0},
)


def sampled(count: int) -> tuple[Generate, ...]:
    """Each with a seed; the first of every four, and the last, are held by a grammar."""
    return tuple(
        Generate(
            f"r{index}",
            prompt_of(15 + 20 * (index % 3), index),
            Sampling(max_tokens=20, seed=index, **SAMPLINGS[index % len(SAMPLINGS)]),
            stop_ids=(0,),
            constraint=CITY if index % 4 in (0, 3) else None,
        )
        for index in range(count)
    )


def repeating(temperature: float) -> tuple[Generate, ...]:
    """Replies that are drafted from themselves, always rightly if greedy, beside others that are not."""
    biases = {11: 30.0, 12: 29.0} if temperature else {11: 100.0}
    sampling = Sampling(max_tokens=60, temperature=temperature, seed=3, logit_bias=biases)
    return (Generate("again", prompt_of(20, 9), sampling), *sampled(2))


def written(requests: Sequence[Generate], place: float, draft_tokens: int = 0) -> tuple[Written, Bench, set[str]]:
    """Ids, end and log probabilities of every request; and at which kinds of step memory was over."""
    bench, exhausted = bench_with("qwen3", place, draft_tokens)
    bench.grammars = grammars()  # type: ignore[assignment]
    play(bench, requests)
    told = {
        request.id: (
            bench.ids(request.id),
            bench.end(request.id),
            [entry for delta in bench.deltas(request.id) for entry in delta.logprobs or ()],
        )
        for request in requests
    }
    return told, bench, exhausted.failed


@cached
def undisturbed(kind: str) -> Written:
    """The same requests with memory enough, nothing drafted."""
    return written(sampled(8) if kind == "sampled" else repeating(float(kind)), NEVER)[0]


def same(found: Written, expected: Written) -> None:
    """Equal ids and ends; log probabilities equal but for rounding."""
    for id, (ids, end, logprobs) in expected.items():
        assert (id, *found[id][:2]) == (id, ids, end)
        assert [entry.token_id for entry in found[id][2]] == [entry.token_id for entry in logprobs]
        assert [entry.logprob for entry in found[id][2]] == pytest.approx([entry.logprob for entry in logprobs])


@pytest.mark.parametrize("place", [0.0, 0.97, *(pytest.param(at, marks=pytest.mark.long) for at in (0.5, 1.0))])
def test_sampled_and_constrained_replies_survive_it(place: float) -> None:
    """Random numbers, penalties, grammars, forced ids and log probabilities stand where they stood before the step."""
    found, bench, failed = written(sampled(8), place)
    assert failed >= {"prompt", "reply", "prompt reply"} and bench.scheduler.counts.forced_tokens > 0
    same(found, undisturbed("sampled"))
    for id in ("r0", "r3", "r4", "r7"):  # r3 and r7 have log probabilities, so that nothing is forced on them unseen
        assert json.loads(qwen_vocabulary().decode(found[id][0]))["city"] in ("Paris", "Rome", "Oslo")
        assert len(found[id][2]) == (len(found[id][0]) if id in ("r3", "r7") else 0)


@pytest.mark.parametrize(
    ("place", "temperature"),
    [
        (0.5, 0.0),
        (0.95, 1.0),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((0.0, 0.0), (0.95, 0.0), (0.0, 1.0), (0.5, 1.0))),
    ],
)
def test_rows_that_verify_drafts_survive_it(place: float, temperature: float) -> None:
    """Drafts are neither accepted twice nor lost, right ones and wrong ones; and drafting itself changes no reply."""
    found, bench, failed = written(repeating(temperature), place, draft_tokens=4)
    assert any("drafts" in kind for kind in failed), failed
    assert 0 < bench.scheduler.counts.accepted_tokens <= bench.scheduler.counts.drafted_tokens
    same(found, undisturbed(str(temperature)))


def test_both_of_torchs_ways_of_having_no_memory_are_understood() -> None:
    with pytest.raises(MemoryError), as_memory_error():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(MemoryError), as_memory_error():
        torch.empty(1 << 60, dtype=torch.uint8)  # what a CPU says
    with pytest.raises(RuntimeError, match="shape"), as_memory_error():
        torch.zeros(2).view(3)
