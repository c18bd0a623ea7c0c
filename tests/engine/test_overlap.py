"""Steps launched before the one before them is read: what may be planned so, and what becomes of it."""

from server.engine.slots import Slots
from server.messages import Constraint, Generate
from tests.engine.toys import Bench, ask, write_alone


def bench_of(num_blocks: int = 40, *, slots: Slots | None = None, overlap: bool = True, **limits: int) -> Bench:
    return Bench(num_blocks, 4, slots, True, overlap=overlap, **limits)


def endless(id: str, prompt: list[int], max_tokens: int = 12, seed: int = 0) -> Generate:
    return ask(id, prompt, max_tokens, ignore_eos=True, seed=seed)


def test_every_step_but_the_first_is_launched_before_the_one_before_it_is_read() -> None:
    bench = bench_of()
    requests = [endless("a", [1, 2, 3], seed=1), endless("b", [4, 5], seed=2)]
    for request in requests:
        bench.add(request)
    bench.run()
    assert [bench.ids(request.id) for request in requests] == [
        write_alone(one, one.sampling.seed or 0) for one in requests
    ]
    assert bench.model.num_steps == 12, "the prompts' step gives the first id, and nothing is computed after the last"
    assert bench.model.num_overlapped == 11


def test_nothing_is_launched_ahead_where_the_device_does_not_gain() -> None:
    for limits in ({"overlap": False}, {"slots": Slots(2, 2)}, {"draft_tokens": 2}):
        bench = bench_of(**limits)
        bench.add(endless("a", [1, 2, 3]))
        bench.run()
        assert bench.model.num_overlapped == 0


def test_log_probabilities_are_read_before_the_next_step_overwrites_them() -> None:
    bench = bench_of()
    bench.add(ask("a", [1, 2, 3], 6, ignore_eos=True, num_logprobs=0))
    bench.run()
    assert bench.model.num_overlapped == 0


def test_an_arrival_waits_for_one_step_and_no_longer() -> None:
    bench = bench_of()
    bench.add(endless("a", [1, 2, 3], 30))
    bench.step()
    bench.step()
    bench.add(endless("b", [3, 3], 5))
    bench.step()  # what was in flight
    assert bench.ids("b") == []
    bench.step()
    assert len(bench.ids("b")) == 1
    bench.run()


def test_where_nobody_more_may_run_those_who_wait_do_not_slow_the_others() -> None:
    bench = bench_of(max_running=1)
    bench.add(endless("a", [1, 2, 3], 12))
    bench.add(endless("b", [3, 3], 12))
    bench.run()
    assert bench.model.num_overlapped == 22
    assert bench.ids("b") == write_alone(endless("b", [3, 3], 12), 0)


def test_a_reply_that_ended_unforeseen_was_computed_in_vain_and_its_blocks_are_free() -> None:
    """A stop id is seen only when it is read: the row after it is dropped, whichever sequence gets its blocks next."""
    ended_early = 0
    for seed in range(20):
        bench = bench_of(num_blocks=6, max_running=2)
        requests = [ask(f"r{index}", [1 + index, 2, 3], 8, seed=seed + index) for index in range(4)]
        for request in requests:
            bench.add(request)
        bench.run()
        for request in requests:
            assert bench.ids(request.id) == write_alone(request, request.sampling.seed or 0)
        ended_early += sum(bench.end(request.id) == "stop" for request in requests)
        assert bench.blocks.num_used == 0
    assert ended_early > 10


def test_an_abort_in_flight_drops_the_row() -> None:
    bench = bench_of()
    bench.add(endless("a", [1, 2, 3], 12, seed=1))
    bench.add(endless("b", [4, 5], 12, seed=2))
    bench.step()
    bench.step()
    told = bench.ids("b")
    bench.scheduler.abort("b")
    bench.run()
    assert bench.ids("b") == told
    assert bench.ids("a") == write_alone(endless("a", [1, 2, 3], 12, seed=1), 1)
    assert bench.blocks.num_used == 0


def test_everybody_aborted_in_flight_leaves_nothing_to_sample() -> None:
    bench = bench_of()
    bench.add(endless("a", [1, 2, 3], 12))
    bench.step()
    steps = bench.scheduler.counts.steps
    bench.scheduler.abort("a")
    bench.run()
    assert bench.scheduler.counts.steps == steps
    bench.add(endless("b", [1, 2, 3], 3))
    bench.run()
    assert bench.ids("b") == write_alone(endless("b", [1, 2, 3], 3), 0)


def test_ids_forced_in_flight_are_computed_next_and_what_was_computed_counts() -> None:
    """The row ahead holds the right token, and is not sampled."""
    request = ask("a", [1, 2], 30, constraint=Constraint("? ? ? ? ? ? 4 5 ? 4 5 ? ? ? ? ? 6 6 ?"))
    bench, plain = bench_of(), bench_of(overlap=False)
    for one in (bench, plain):
        one.add(request)
        one.run()
    assert bench.ids("a") == plain.ids("a") == write_alone(request, 0)
    assert bench.model.num_overlapped > 0
    assert bench.model.num_tokens == plain.model.num_tokens, "nothing is computed twice"
    assert bench.model.num_steps <= plain.model.num_steps + 2, "where ids are forced often, nothing is computed ahead"


def test_without_a_block_to_spare_the_step_waits_instead_of_preempting() -> None:
    """A sequence that would be preempted might be about to end."""
    bench = bench_of(num_blocks=4, cache_tokens=16)
    requests = [endless("a", [1, 2, 3], 5, seed=1), endless("b", [3, 2, 1], 5, seed=2)]
    for request in requests:
        bench.add(request)
    bench.run()
    assert bench.scheduler.counts.preemptions == 0
    assert [bench.ids(one.id) for one in requests] == [write_alone(one, one.sampling.seed or 0) for one in requests]


def test_memory_that_runs_out_for_the_step_ahead_does_not_harm_the_one_before() -> None:
    bench = bench_of()
    bench.add(endless("a", [1, 2, 3], 12))
    bench.step()

    def break_once(_: int) -> None:
        bench.model.on_launch = lambda _: None
        raise MemoryError

    bench.model.on_launch = break_once
    bench.step()
    assert len(bench.ids("a")) == 2
    bench.run()
    assert bench.ids("a") == write_alone(endless("a", [1, 2, 3], 12), 0)
