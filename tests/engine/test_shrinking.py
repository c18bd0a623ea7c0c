"""Sequences while the blocks become fewer."""

import pytest

from tests.engine.toys import Bench, ask, write_alone


def test_shrinking_takes_cached_blocks_first_then_the_newest_sequence() -> None:
    bench = Bench(num_blocks=12, block_size=2, max_batch_tokens=64)
    bench.add(ask("gone", [5] * 6, max_tokens=1))
    bench.run()
    assert bench.blocks.num_cached == 3
    requests = [ask(f"r{seed}", [seed + 1] * 4, max_tokens=4, seed=seed, ignore_eos=True) for seed in range(2)]
    for request in requests:
        bench.add(request)
    bench.step()
    bench.resize(4, preempt=True)
    assert bench.blocks.num_beyond_limit == 0
    assert bench.blocks.num_cached + bench.blocks.num_used <= 4
    bench.run()
    bench.resize(12, preempt=False)
    for seed, request in enumerate(requests):
        assert bench.ids(request.id) == write_alone(request, seed)


@pytest.mark.parametrize("preempt", [False, True])
def test_shrinking_moves_blocks_in_use_to_the_place_of_cached_ones(preempt: bool) -> None:
    """Sequences behind cached blocks were preempted although all they held would have fitted below the limit."""
    bench = Bench(num_blocks=16, block_size=2, max_batch_tokens=64)
    bench.add(ask("gone", [5] * 15, max_tokens=1))
    bench.run()
    assert bench.blocks.num_cached > 4
    # Two that share their first blocks, and one of its own.
    requests = [ask(f"r{seed}", [[1] * 5, [1] * 5, [3] * 4][seed], max_tokens=4, seed=seed) for seed in range(3)]
    for request in requests:
        bench.add(request)
        bench.step()
    num_used = bench.blocks.num_used
    assert max(max(one.blocks) for one in bench.scheduler.running) >= num_used
    bench.resize(num_used, preempt=preempt)
    bench.scheduler.check()
    assert bench.blocks.num_beyond_limit == 0 and bench.blocks.num_used == num_used
    assert bench.scheduler.counts.preemptions == 0
    bench.resize(16, preempt=False)
    bench.run()
    for seed, request in enumerate(requests):
        assert bench.ids(request.id) == write_alone(request, seed)
    again = ask("again", [1] * 5, max_tokens=1)
    bench.add(again)
    bench.run()
    assert bench.cached("again"), "moved blocks are still found"


def test_shrinking_preempts_the_newest_until_the_others_fit() -> None:
    """The newest may hold no block beyond the limit: its places below it are what older ones need."""
    bench = Bench(num_blocks=12, block_size=2, max_batch_tokens=64, caching=False)
    requests = [ask(f"r{seed}", [seed + 1] * 5, max_tokens=6, seed=seed, ignore_eos=True) for seed in range(3)]
    for request in requests:
        bench.add(request)
        bench.step()
    held = [len(one.blocks) for one in bench.scheduler.running]
    bench.resize(sum(held[:2]), preempt=True)
    assert [one.id for one in bench.scheduler.running] == ["r0", "r1"]
    assert bench.blocks.num_beyond_limit == 0
    bench.resize(12, preempt=False)
    bench.run()
    for seed, request in enumerate(requests):
        assert bench.ids(request.id) == write_alone(request, seed)


def test_shrinking_without_preemption_leaves_runners_their_blocks() -> None:
    bench = Bench(num_blocks=8, block_size=2)
    bench.add(ask("a", [1] * 7, max_tokens=2, ignore_eos=True))
    bench.step()
    bench.resize(1, preempt=False)
    assert bench.blocks.num_beyond_limit > 0
    bench.run(max_steps=5)
    assert bench.end("a") == "length"
    assert bench.blocks.num_beyond_limit == 0
