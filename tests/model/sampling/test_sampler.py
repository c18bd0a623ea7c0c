"""Sampling against reference implementations, and its independence of the batch."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import transformers

from server.messages import Sampling
from server.model.batch import RowSampling, SampledTokens, TokenHistory
from server.model.sampling.grammar import Masks
from server.model.sampling.penalties import adjust_logits
from server.model.sampling.sampler import NUM_CANDIDATES, SamplingRow, sample_ids, uniform

VOCAB = 3000


@dataclass
class SampleCase:
    """One row to sample, with its own logits, one line a position."""

    sampling: Sampling
    logits: torch.Tensor
    seed: int = 0
    prompt: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    banned: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()


def sample(cases: list[SampleCase], masks: Masks | None = None) -> list[SampledTokens]:
    rows, first = [], 0
    for case in cases:
        how = RowSampling(case.sampling, case.seed, case.prompt, case.written, case.banned)
        rows.append(SamplingRow(how, case.drafts, first))
        first += 1 + len(case.drafts)
    return sample_ids(torch.cat([case.logits for case in cases]).clone(), rows, masks).read()


def noise(seed: int, lines: int = 1, scale: float = 2.0, vocab: int = VOCAB) -> torch.Tensor:
    return scale * torch.randn(lines, vocab, generator=torch.Generator().manual_seed(seed))


def sampling(**values: object) -> Sampling:
    return Sampling(max_tokens=10, **values)  # type: ignore[arg-type]


MIXTURE = [
    sampling(temperature=0.0),
    sampling(),
    sampling(temperature=0.3, top_p=0.8),
    sampling(top_k=5),
    sampling(top_k=NUM_CANDIDATES[0] + 100),
    sampling(top_p=0.999, temperature=3.0),
    sampling(min_p=0.1),
    sampling(temperature=0.7, top_k=20, top_p=0.8, min_p=0.02, frequency_penalty=0.5),
    sampling(repetition_penalty=1.3, logit_bias={7: 30.0}),
    sampling(num_logprobs=4, presence_penalty=-1.0),
]


def test_a_row_gets_the_same_ids_whatever_else_is_in_the_batch() -> None:
    cases = [SampleCase(how, noise(i, 1), seed=i, prompt=[1, 2, 3], written=[4, 5, i]) for i, how in enumerate(MIXTURE)]
    alone = [sample([case])[0] for case in cases]
    for shuffle_seed in range(5):
        order = random.Random(shuffle_seed).sample(range(len(cases)), k=len(cases))
        together = sample([cases[i] for i in order])
        assert together == [alone[i] for i in order]
    assert sample(cases[2:5]) == alone[2:5]


def test_random_numbers_depend_on_seed_and_index_only() -> None:
    assert uniform(1, 0) != uniform(1, 1) != uniform(2, 0)
    numbers = [uniform(seed, index) for seed in range(200) for index in range(50)]
    assert min(numbers) >= 0 and max(numbers) < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 45  # chi square, 19 degrees: 43.8 is 0.1 %
    follow = np.corrcoef([uniform(seed, 0) for seed in range(5000)], [uniform(seed, 1) for seed in range(5000)])
    assert abs(follow[0, 1]) < 0.05


def allowed_by_transformers(how: Sampling, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities after transformers' own processors, in its order."""
    scores = logits / how.temperature
    if how.top_k:
        scores = transformers.TopKLogitsWarper(how.top_k)(torch.zeros(1, 0), scores)
    if how.top_p < 1:
        scores = transformers.TopPLogitsWarper(how.top_p)(torch.zeros(1, 0), scores)
    if how.min_p:
        scores = transformers.MinPLogitsWarper(how.min_p)(torch.zeros(1, 0).long(), scores)  # type: ignore[arg-type]
    return torch.softmax(scores.double(), -1)[0]


@pytest.mark.parametrize(
    "how",
    [
        sampling(),
        sampling(temperature=0.5),
        sampling(top_k=1),
        sampling(top_k=7),
        sampling(top_k=900, temperature=2.0),
        sampling(top_p=0.3),
        sampling(top_p=0.9, temperature=1.5),
        sampling(top_p=0.99, temperature=4.0),
        sampling(min_p=0.2),
        sampling(min_p=0.05, temperature=1.5),
        sampling(top_k=30, top_p=0.7, min_p=0.1),
        sampling(top_p=1e-6),
    ],
)
def test_samples_follow_the_distribution_of_transformers(how: Sampling) -> None:
    logits = noise(3)
    case = allowed_by_transformers(how, logits)
    lines = logits.expand(4000, -1).contiguous()
    rows = [SamplingRow(RowSampling(how, seed, [], []), (), seed) for seed in range(4000)]
    ids = [result.token_ids[0] for result in sample_ids(lines, rows, None).read()]
    assert all(case[token_id] > 0 for token_id in ids), "an id outside of the truncated distribution was sampled"
    seen = Counter(ids)
    likely = [token_id for token_id in range(VOCAB) if case[token_id] > 0.005]
    for token_id in likely:
        p = float(case[token_id])
        assert abs(seen[token_id] / 4000 - p) < 5 * math.sqrt(p * (1 - p) / 4000) + 1e-9


def test_every_id_within_top_p_can_be_sampled_from_a_flat_distribution() -> None:
    """More ids than candidates: the row is sorted in full."""
    for vocab, seeds in ((VOCAB, 300), (40_000, 100)):
        flat = torch.zeros(1, vocab)
        ids = [sample([SampleCase(sampling(top_p=0.5), flat, seed=seed)])[0].token_ids[0] for seed in range(seeds)]
        assert len(set(ids)) > 0.8 * seeds


def test_penalties_equal_transformers_and_openai() -> None:
    logits, prompt, written = noise(5), [10, 11, 11, 12], [20, 21, 20, 20]
    ids = torch.tensor([prompt + written])
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    expected[0, 20] -= 0.4 + 3 * 0.3
    expected[0, 21] -= 0.4 + 0.3
    expected[0, 30] += 2.5
    how = sampling(
        temperature=0.0, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={30: 2.5}
    )
    rest = expected.clone()
    banned: tuple[int, ...] = ()
    for _ in range(25):  # the order of the best ids, not only the first
        best = int(rest.argmax())
        assert sample([SampleCase(how, logits, prompt=prompt, written=written, banned=banned)])[0].token_ids == (best,)
        rest[0, best] = -torch.inf
        banned = (*banned, best)


def test_penalties_count_the_drafts_before_each_position() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, 5], logits[:, 6], logits[:, 7] = 3.0, 2.5, 2.0
    how = sampling(temperature=0.0, presence_penalty=1.2)
    assert sample([SampleCase(how, logits, drafts=(5, 6))])[0].token_ids == (5, 6, 7)


def penalized(how: Sampling, logits: torch.Tensor, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """transformers' repetition penalty, then OpenAI's formula, over all ids at once."""
    ids = torch.tensor([prompt + reply])
    expected = transformers.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)(ids, logits.clone())
    for token_id, count in Counter(reply).items():
        expected[0, token_id] -= how.presence_penalty + count * how.frequency_penalty
    return expected


@pytest.mark.parametrize("seed", range(6))
def test_counts_that_grow_with_the_reply_give_what_counting_all_ids_gives(seed: int) -> None:
    """Prompt and reply were sorted again at every step: 3.6 ms a row at 32,000 tokens."""
    chance = random.Random(seed)
    how = sampling(repetition_penalty=1.1 + seed % 2, presence_penalty=0.4, frequency_penalty=0.3)
    prompt, reply, history = (
        chance.choices(range(VOCAB), k=200),
        chance.choices(range(VOCAB), k=400 * (seed % 2)),
        TokenHistory(),
    )
    for step in range(60):
        logits = noise(step, lines=3)
        drafts = chance.choices((*range(20), VOCAB - 1, *reply[-3:]), k=2)
        own = logits.clone()
        adjust_logits(own, RowSampling(how, 0, prompt, reply, (), history), drafts)
        for line in range(3):
            assert torch.equal(own[line], penalized(how, logits[line : line + 1], prompt, reply + drafts[:line])[0])
        reply += (drafts if step % 3 else chance.choices(range(VOCAB), k=40))[: 1 + step % 40]
        if step % 25 == 24:
            del reply[10:]  # a reply that lost ids is counted again


def test_counts_are_made_again_after_memory_ran_out_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is tried again: its drafts must not be counted twice."""
    how, history, logits = sampling(frequency_penalty=0.5), TokenHistory(), noise(1, lines=3)
    row = RowSampling(how, 0, [], [4, 5], (), history)
    adjust_logits(logits.clone(), row, (4, 9))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch, "where", fail)
        adjust_logits(logits.clone(), replace(row, params=sampling(repetition_penalty=2.0)), (4, 9))
    again = logits.clone()
    adjust_logits(again, row, (4, 9))
    assert torch.equal(again[2:], penalized(how, logits[2:], [], [4, 5, 4, 9]))


def test_a_bias_cannot_lift_a_ban() -> None:
    how = sampling(logit_bias={3: 100.0})
    for seed in range(20):
        assert sample([SampleCase(how, noise(seed), seed=seed, banned=(3,))])[0].token_ids != (3,)


def mask_of(*allowed: set[int]) -> np.ndarray:
    words = np.zeros((len(allowed), -(-VOCAB // 32)), dtype=np.uint32)
    for line, ids in enumerate(allowed):
        for token_id in ids:
            words[line, token_id // 32] |= np.uint32(1 << (token_id % 32))
    return words.view(np.int32)


def test_masks_apply_to_their_own_rows_only() -> None:
    free, bound = SampleCase(sampling(temperature=0.0), noise(1)), SampleCase(sampling(), noise(2, 3), drafts=(31, 64))
    masks = Masks(owners=(1, 1, 1), words=mask_of({31}, {64}, {2999, 95}))
    results = sample([free, bound], masks)
    assert results[0].token_ids == (int(noise(1).argmax()),)
    assert results[1].token_ids[:2] == (31, 64)
    assert results[1].token_ids[2] in {2999, 95}


def test_ids_beyond_the_mask_are_not_allowed() -> None:
    words = np.full((1, 2), -1, dtype=np.int32)
    logits = noise(4)
    logits[0, 100] = 50.0
    assert sample([SampleCase(sampling(temperature=0.0), logits)], Masks((0,), words))[0].token_ids[0] < 64


def test_nothing_allowed_is_a_fault_of_that_row_only() -> None:
    cases = [SampleCase(sampling(), noise(1)), SampleCase(sampling(), noise(2), seed=9)]
    results = sample(cases, Masks((0,), mask_of(set())))
    assert results[0].fault is not None and results[1] == sample([cases[1]])[0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_one_logit_that_is_not_finite_is_a_fault_of_that_row_only(broken: float) -> None:
    broken_logits = noise(1)
    broken_logits[0, 17] = broken
    cases = [SampleCase(how, broken_logits if i == 1 else noise(i + 10), seed=i) for i, how in enumerate(MIXTURE[:4])]
    results = sample(cases)
    assert results[1].fault is not None and not results[1].token_ids
    assert [results[i] for i in (0, 2, 3)] == [sample([cases[i]])[0] for i in (0, 2, 3)]


@pytest.mark.parametrize("how", [sampling(), sampling(top_p=0.9), sampling(top_k=5), sampling(min_p=0.1)])
def test_a_row_of_nan_is_a_fault_with_any_settings(how: Sampling) -> None:
    """No candidate is found in it, which must not raise."""
    broken_logits = torch.full((1, VOCAB), math.nan)
    results = sample([SampleCase(how, broken_logits), SampleCase(how, noise(3), seed=7)])
    assert results[0].fault is not None
    assert results[1] == sample([SampleCase(how, noise(3), seed=7)])[0]


def test_a_fault_after_accepted_drafts_keeps_the_drafts() -> None:
    logits = noise(1, 2)
    first = int(logits[0].argmax())
    logits[1] = math.nan
    assert sample([SampleCase(sampling(temperature=0.0), logits, drafts=(first,))])[0].token_ids == (first,)


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = noise(8)
    how = sampling(temperature=0.2, top_k=3, logit_bias={5: 100.0}, num_logprobs=3)
    entry = (sample([SampleCase(how, logits)])[0].logprobs or ())[0]
    expected = torch.log_softmax(logits, -1)[0]
    assert entry.token_id == 5 and entry.logprob == pytest.approx(float(expected[5]), abs=1e-5)
    values, ids = expected.topk(3)
    assert [token_id for token_id, _ in entry.top] == ids.tolist()
    assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_logprobs_only_on_request_and_without_alternatives_for_zero() -> None:
    assert sample([SampleCase(sampling(), noise(1))])[0].logprobs is None
    entry = (sample([SampleCase(sampling(num_logprobs=0), noise(1))])[0].logprobs or ())[0]
    assert entry.top == () and entry.logprob < 0


@pytest.mark.parametrize("how", [sampling(), sampling(temperature=0.7, top_k=10, top_p=0.9)])
def test_accepted_drafts_leave_the_distribution_unchanged(how: Sampling) -> None:
    """Replies of two ids with and without a draft of the first have the same distribution of pairs (chi square)."""
    vocab = 12
    first, second = noise(1, 1, 1.0, vocab), noise(2, vocab, 1.0, vocab)
    counts: dict[bool, Counter[tuple[int, int]]] = {True: Counter(), False: Counter()}
    trials = 6000
    for drafted in (True, False):
        cases = [SampleCase(how, first, seed=trial + drafted * trials) for trial in range(trials)]
        if drafted:
            for i, case in enumerate(cases):
                draft = i % vocab
                case.logits, case.drafts = torch.cat((first, second[draft : draft + 1])), (draft,)
        firsts = [result.token_ids for result in sample(cases)]
        for case, got in zip(cases, firsts, strict=True):
            case.logits, case.drafts, case.written = second[got[0] : got[0] + 1], (), [got[0]]
        seconds = [result.token_ids for result in sample(cases)]
        for got, following in zip(firsts, seconds, strict=True):
            counts[drafted][(got[0], got[1] if len(got) > 1 else following[0])] += 1
    pairs = [pair for pair in counts[True] | counts[False] if counts[True][pair] + counts[False][pair] >= 20]
    distance = sum(
        (counts[True][pair] - counts[False][pair]) ** 2 / (counts[True][pair] + counts[False][pair]) for pair in pairs
    )
    freedom = len(pairs) - 1
    assert distance < freedom + 4 * math.sqrt(2 * freedom)


def test_seeded_ids_are_the_same_with_and_without_drafts() -> None:
    """Drafts use no random numbers: the id at index i always uses (seed, i)."""
    lines = noise(11, 3)
    how = sampling(temperature=0.8)
    plain = [sample([SampleCase(how, lines[i : i + 1], seed=4, written=[0] * i)])[0].token_ids[0] for i in range(3)]
    drafted = sample([SampleCase(how, lines, seed=4, drafts=(plain[0], plain[1]))])[0].token_ids
    assert drafted == tuple(plain)
