"""Hybrid models: recurrent state in slots gives the results of transformers' own cache."""

import psutil
import pytest

from server.messages import Sampling
from server.model.runner import Runner
from tests.checkpoints import Kind
from tests.model.drive import BLOCK_SIZE, Stream, generate, loaded, prompt_of, run, step

HYBRIDS: tuple[Kind, ...] = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
# Each with the compiled kernels; one fast test each, and all long ones, with transformers' layers.
COMPUTED = [
    *((kind, True) for kind in HYBRIDS),
    ("qwen3_5", False),
    pytest.param("qwen3_next", False, marks=pytest.mark.long),
    pytest.param("qwen3_5_moe", False, marks=pytest.mark.long),
]


def greedy(count: int) -> Sampling:
    return Sampling(max_tokens=count, temperature=0.0)


@pytest.mark.parametrize(("kind", "kernels"), COMPUTED)
@pytest.mark.parametrize(("length", "chunk"), [(1, 9), (3, 2), (70, 100), (100, 33)])
def test_greedy_equals_generate_alone_with_the_state_carried_across_chunks(
    kind: Kind, kernels: bool, length: int, chunk: int
) -> None:
    runner = Runner(loaded(kind, kernels), 16, BLOCK_SIZE, num_slots=3)
    stream = Stream(prompt_of(length), range(2, 12), greedy(12), slot=1, chunk=chunk)
    run(runner, [stream])
    assert stream.written == generate(kind, stream.prompt, 12)


@pytest.mark.parametrize(("kind", "kernels"), COMPUTED)
def test_greedy_equals_generate_in_a_staggered_batch(kind: Kind, kernels: bool, is_long: bool) -> None:
    num_streams = 16 if is_long or kind == "qwen3_next" else 6
    runner = Runner(loaded(kind, kernels), 200, BLOCK_SIZE, num_slots=20)
    streams = []
    for i in range(num_streams):
        blocks = range(10 * i, 10 * i + 10)
        slot = (7 * i) % 16 if i % 2 else 16 + i // 2 if i < 8 else (7 * i) % 16
        streams.append(Stream(prompt_of(1 + 7 * i, i), blocks, greedy(6 + i % 5), slot=slot, chunk=20 + i))
    assert len({stream.slot for stream in streams}) == num_streams
    for arrived in range(1, num_streams + 1):
        step(runner, streams[:arrived])
    run(runner, streams)
    for stream in streams:
        assert stream.written == generate(kind, stream.prompt, stream.sampling.max_tokens)


@pytest.mark.parametrize(("kind", "kernels"), COMPUTED)
def test_a_reused_slot_starts_without_state(kind: Kind, kernels: bool) -> None:
    runner = Runner(loaded(kind, kernels), 16, BLOCK_SIZE, num_slots=1)
    run(runner, [Stream(prompt_of(30, 1), range(5), greedy(5), slot=0)])
    again = Stream(prompt_of(20, 2), range(5), greedy(8), slot=0)
    run(runner, [again])
    assert again.written == generate(kind, again.prompt, 8)


@pytest.mark.parametrize(("kind", "kernels"), COMPUTED)
def test_a_snapshot_of_the_state_replaces_the_prefix(kind: Kind, kernels: bool) -> None:
    """The state after 48 tokens is kept, and another sequence with that prefix continues from it."""
    runner = Runner(loaded(kind, kernels), 32, BLOCK_SIZE, num_slots=3)
    shared = prompt_of(48, 3)
    first = Stream([*shared, 7, 8, 9], range(8), greedy(6), slot=0, chunk=48)
    step(runner, [first])
    runner.copy_state(0, 2)
    run(runner, [first])
    runner.copy_state(2, 1)
    second = Stream([*shared, 4, 5], [0, 1, 2, 20, 21], greedy(6), slot=1, num_computed=48)
    run(runner, [second])
    assert first.written == generate(kind, first.prompt, 6)
    assert second.written == generate(kind, second.prompt, 6)


def test_unused_slots_take_no_memory() -> None:
    """A default of 256 running sequences would take gigabytes at start."""
    model = loaded("qwen3_5")
    before = psutil.Process().memory_info().rss
    runner = Runner(model, 4, BLOCK_SIZE, num_slots=20_000)
    assert runner.states is not None
    held = sum(tensor.nbytes for tensor in (*runner.states.recurrent.values(), *runner.states.convolution.values()))
    assert held > 200 << 20
    assert psutil.Process().memory_info().rss - before < 50 << 20
    run(runner, [Stream(prompt_of(20), range(4), greedy(3), slot=19_999)])
