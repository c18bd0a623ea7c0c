"""Mixed batches compute what transformers' generate() computes for each sequence alone."""

import random
from dataclasses import replace

import pytest
import torch

from server.messages import Sampling
from server.model.runner import Runner
from tests.checkpoints import Kind
from tests.model.drive import BLOCK_SIZE, GREEDY, Stream, compute, generate, loaded, prompt_of, reference, run, step

KINDS: tuple[Kind, ...] = ("qwen2", "qwen3", "qwen3_moe", "llama")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 16, 17, 100])
def test_greedy_equals_generate_alone_with_a_prompt_in_chunks(kind: Kind, length: int) -> None:
    runner = Runner(loaded(kind), 16, BLOCK_SIZE)
    sampling = greedy(20)
    stream = Stream(prompt_of(length), range(2, 12), sampling, chunk=40)
    run(runner, [stream])
    assert stream.written == generate(kind, stream.prompt, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate_in_a_mixed_batch_with_staggered_arrivals(kind: Kind, is_long: bool) -> None:
    """Prefill chunks, decode and new sequences in one step, over blocks in random order."""
    num_streams = 32 if is_long else 12
    shuffled = list(range(400))
    random.Random(0).shuffle(shuffled)
    streams = []
    for i in range(num_streams):
        length = 1 + (i * 37) % 120
        blocks = [shuffled.pop() for _ in range(-(-(length + 24) // BLOCK_SIZE))]
        streams.append(Stream(prompt_of(length, i), blocks, greedy(8 + i % 16), chunk=30 + i))
    runner = Runner(loaded(kind), 400, BLOCK_SIZE)
    for arrived in range(1, num_streams + 1):
        step(runner, streams[:arrived])
    run(runner, streams)
    for stream in streams:
        assert stream.written == generate(kind, stream.prompt, stream.sampling.max_tokens)


def test_rows_in_adjacent_blocks_with_gaps_are_computed_correctly() -> None:
    """Foreign blocks between the batch's own, and stale data in a block, must not leak into any row."""
    runner = Runner(loaded("qwen3"), 64, BLOCK_SIZE)
    for part in (*runner.pool.keys, *runner.pool.values):
        part.fill_(torch.nan)
    streams = [Stream(prompt_of(60, i), range(6 * i, 6 * i + 5), greedy(16)) for i in range(4)]
    run(runner, streams)
    for stream in streams:
        assert stream.written == generate("qwen3", stream.prompt, 16)


def test_a_prefix_computed_by_another_sequence_gives_the_same_reply() -> None:
    runner = Runner(loaded("qwen3"), 32, BLOCK_SIZE)
    shared = prompt_of(64, 1)
    first = Stream([*shared, 5, 6, 7], range(8), greedy(12))
    run(runner, [first])
    second = Stream([*shared, 9, 8], [0, 1, 2, 3, 20, 21], greedy(12), num_computed=64)
    third = Stream(shared, [0, 1, 2, 22, 23], greedy(12), num_computed=48)
    run(runner, [second, third])
    for stream in (first, second, third):
        assert stream.written == generate("qwen3", stream.prompt, 12)


def test_drafts_right_wrong_and_half_right_change_no_reply() -> None:
    prompt = prompt_of(50, 3)
    truth = generate("qwen3", prompt, 40)

    def draft(written: list[int]) -> list[int]:
        following = truth[len(written) : len(written) + len(written) % 5]
        return [*following[:2], *[(token + 1) % 1000 for token in following[2:]]]

    runner = Runner(loaded("qwen3"), 32, BLOCK_SIZE)
    drafted = Stream(prompt, range(1, 9), greedy(30), drafter=draft)
    plain = Stream(prompt_of(20, 4), range(10, 16), greedy(30))
    run(runner, [drafted, plain])
    assert drafted.written == truth[:30]
    assert plain.written == generate("qwen3", plain.prompt, 30)


def test_forced_tokens_in_one_pass_are_a_row_of_several_tokens() -> None:
    """New tokens after cached ones, around the limit between short rows and chunks."""
    prompt = prompt_of(90, 5)
    expected = generate("qwen3", prompt, 3)
    for new_tokens in (2, 15, 16, 17, 33):
        runner = Runner(loaded("qwen3"), 16, BLOCK_SIZE)
        stream = Stream(prompt, range(3, 10), greedy(3), chunk=90 - new_tokens)
        run(runner, [stream])
        assert stream.written == expected


def test_logprobs_equal_a_direct_forward_pass() -> None:
    runner = Runner(loaded("qwen2"), 32, BLOCK_SIZE)
    sampling = Sampling(max_tokens=12, temperature=0.9, top_k=50, num_logprobs=5, frequency_penalty=1.0)
    streams = [Stream(prompt_of(20 + i, i), range(4 * i, 4 * i + 4), sampling, seed=i) for i in range(4)]
    run(runner, streams)
    for stream in streams:
        ids = torch.tensor([[*stream.prompt, *stream.written]])
        with torch.inference_mode():
            logits = reference("qwen2")(ids).logits[0, len(stream.prompt) - 1 : -1]
        expected = torch.log_softmax(logits.float(), -1)
        for place, entry in enumerate(stream.logprobs):
            assert entry.token_id == stream.written[place]
            assert entry.logprob == pytest.approx(float(expected[place, entry.token_id]), abs=1e-4)
            values, tops = expected[place].topk(5)
            assert [token_id for token_id, _ in entry.top] == tops.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_nan_in_one_sequence_fails_that_sequence_only() -> None:
    runner = Runner(loaded("qwen3"), 32, BLOCK_SIZE)
    broken = Stream(prompt_of(30, 1), range(4), greedy(10))
    healthy = Stream(prompt_of(30, 2), range(4, 8), greedy(10))
    step(runner, [broken, healthy])
    runner.pool.values[1][1].fill_(torch.nan)
    run(runner, [broken, healthy])
    assert broken.fault is not None and "finite" in broken.fault
    assert healthy.fault is None and healthy.written == generate("qwen3", healthy.prompt, 10)


def test_a_step_without_logits_samples_nothing() -> None:
    runner = Runner(loaded("qwen3"), 8, BLOCK_SIZE)
    stream = Stream(prompt_of(40), range(4), chunk=10)
    row = stream.row()
    assert compute(runner, [row]) == []


def greedy(count: int) -> Sampling:
    """Greedy sampling of this many ids."""
    return Sampling(max_tokens=count, temperature=GREEDY.temperature)


def test_memory_of_released_blocks_is_freed_and_can_be_used_again() -> None:
    runner = Runner(loaded("qwen3"), 4096, BLOCK_SIZE)
    stream = Stream(prompt_of(30), range(2000, 2004), greedy(5))
    run(runner, [stream])
    kept = replace(Stream(prompt_of(30), range(4), greedy(5)))
    run(runner, [kept])
    assert runner.pool.keys[0][2000].abs().sum() > 0
    runner.release(100)
    assert runner.pool.keys[0][2000].abs().sum() == 0
    assert runner.pool.keys[0][0].abs().sum() > 0
    assert runner.restore(4096) == 4096
    again = Stream(prompt_of(30), range(2000, 2004), greedy(5))
    run(runner, [again])
    assert again.written == stream.written
