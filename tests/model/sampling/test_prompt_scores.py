"""Logprobs of a prompt equal transformers' log_softmax, and take a bounded piece of logits at a time."""

import pytest
import torch

from server.messages import TokenLogprob
from server.model.batch import Batch, PromptTargets, Row
from server.model.profile import AllocationMeter
from server.model.runner import Runner
from tests.checkpoints import Kind
from tests.model.drive import BLOCK_SIZE, Stream, compute, loaded, prompt_of, reference

KINDS: tuple[Kind, ...] = ("qwen2", "qwen3", "qwen3_moe", "llama", "qwen3_5")


def scored_row(prompt: list[int], start: int, count: int, num_top: int, blocks: range, slot: int | None) -> Row:
    """A chunk of a prompt whose ids are scored, and nothing sampled."""
    ids = prompt[start + 1 : start + count + 1]
    targets = PromptTargets(0, ids, num_top) if ids else None
    return Row(prompt[start : start + count], start, blocks, 0, None, slot, targets)


def expected_of(kind: Kind, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(reference(kind)(torch.tensor([prompt])).logits[0].float(), -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [37, 200])
def test_they_equal_transformers_beside_other_rows(kind: Kind, chunk: int) -> None:
    """Lines of hidden states are taken from a reordered batch, in pieces smaller than a chunk."""
    runner = Runner(loaded(kind), 64, BLOCK_SIZE, 4)
    prompt = prompt_of(100, 3)
    others = [Stream(prompt_of(9, seed), range(20 + 4 * seed, 24 + 4 * seed), slot=1 + seed) for seed in range(2)]
    found: list[TokenLogprob] = []
    for start in range(0, len(prompt), chunk):
        row = scored_row(prompt, start, chunk, 5, range(8), 0)
        first, second = (other.row() for other in others)
        results = compute(runner, [first, row, second])
        assert len(results) == 3 and results[0].token_ids and not results[0].prompt_logprobs
        found += results[1].prompt_logprobs
        for other, result in zip(others, (results[0], results[2]), strict=True):
            other.num_computed = len(other.prompt) + len(other.written)
            other.written += result.token_ids
    expected = expected_of(kind, prompt)
    assert [one.token_id for one in found] == prompt[1:]
    for place, one in enumerate(found):
        assert one.logprob == pytest.approx(float(expected[place, one.token_id]), abs=3e-4)
        values, ids = expected[place].topk(5)
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=3e-4)
        assert [token_id for token_id, _ in one.top] == ids.tolist()


def test_without_alternatives_there_are_none() -> None:
    (result,) = compute(Runner(loaded("qwen3"), 8, BLOCK_SIZE), [scored_row([5, 6, 7], 0, 3, 0, range(1), None)])
    assert [one.top for one in result.prompt_logprobs] == [(), ()]


def test_a_long_prompt_takes_a_piece_of_logits_at_a_time() -> None:
    """Logits of 600 tokens over 150,000 ids are 360 MB at once; a prompt of 32,000 would need 20 GB."""
    runner, prompt = Runner(loaded("qwen3"), 40, BLOCK_SIZE), prompt_of(600, 1)
    plain = Row(prompt, 0, range(40), 0, None)
    with AllocationMeter() as without:
        runner.launch(Batch((plain,)))
    with AllocationMeter() as scored:
        compute(runner, [scored_row(prompt, 0, 600, 20, range(40), None)])
    assert scored.peak - without.peak < 100 << 20


def test_logits_that_are_not_finite_fail_that_prompt_only() -> None:
    runner = Runner(loaded("qwen3"), 32, BLOCK_SIZE)
    broken, healthy = prompt_of(30, 1), prompt_of(30, 2)
    compute(runner, [scored_row(broken, 0, 16, 1, range(4), None)])
    runner.pool.values[1][0].fill_(torch.nan)
    rows = [scored_row(broken, 16, 14, 1, range(4), None), scored_row(healthy, 0, 30, 1, range(4, 8), None)]
    failed, sound = compute(runner, rows)
    assert failed.fault and not failed.prompt_logprobs
    assert not sound.fault and len(sound.prompt_logprobs) == 29
