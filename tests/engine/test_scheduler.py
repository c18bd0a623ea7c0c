"""The scheduler over a toy model: who runs when, and what each bug it must not have looks like."""

import pytest

from server.messages import Constraint, Delta, Failed
from tests.engine.toys import STOP, Bench, ask, write_alone


def test_lone_request_writes_what_the_model_says() -> None:
    bench = Bench(num_blocks=16, block_size=4)
    request = ask("a", [1, 2, 3, 4, 5], max_tokens=20, seed=3)
    bench.add(request)
    bench.run()
    assert bench.ids("a") == write_alone(request, 3)
    assert bench.end("a") in ("stop", "length")
    assert bench.blocks.num_used == 0


def test_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    bench = Bench(num_blocks=32, block_size=4, max_batch_tokens=5)
    request = ask("a", [1, 2, 3] * 9, max_tokens=6, seed=1)
    bench.add(request)
    bench.run()
    assert bench.ids("a") == write_alone(request, 1)
    assert bench.model.largest_step == 5


def test_long_prompt_does_not_stall_a_running_stream() -> None:
    bench = Bench(num_blocks=64, block_size=4, max_batch_tokens=8)
    bench.add(ask("stream", [1, 2], max_tokens=20, ignore_eos=True))
    bench.step()
    bench.add(ask("long", [3] * 100, max_tokens=2))
    for num_written in range(2, 12):
        bench.step()
        assert len(bench.ids("stream")) == num_written
    assert bench.ids("long") == []


def test_known_prefix_is_not_computed_again() -> None:
    bench = Bench(num_blocks=32, block_size=4, max_batch_tokens=64)
    head = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    bench.add(ask("a", [*head, 1], max_tokens=1))
    bench.run()
    before = bench.model.num_tokens
    request = ask("b", [*head, 2, 2], max_tokens=1, seed=5)
    bench.add(request)
    bench.run()
    assert bench.cached("b") == 12
    assert bench.model.num_tokens - before == 2
    assert bench.ids("b") == write_alone(request, 5)


def test_prompt_found_whole_still_recomputes_its_last_token() -> None:
    bench = Bench(num_blocks=32, block_size=4)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2]
    for id in ("a", "b"):
        bench.add(ask(id, prompt, max_tokens=3, seed=9))
        bench.run()
    assert bench.cached("b") == 4  # whole blocks: the copied beginning of the second does not count
    assert bench.ids("a") == bench.ids("b") == write_alone(ask("x", prompt, max_tokens=3), 9)


def test_choices_of_one_group_share_the_blocks_of_their_prompt() -> None:
    bench = Bench(num_blocks=64, block_size=4, max_batch_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6] * 4
    requests = [ask(f"c{seed}", prompt, max_tokens=4, seed=seed) for seed in range(4)]
    for request in requests:
        bench.add(request)
    bench.run()
    # 24 tokens once, then the last one for each of the others, then at most three more ids for each
    assert bench.model.num_tokens <= 24 + 3 * 1 + 4 * 3
    for seed, request in enumerate(requests):
        assert bench.ids(request.id) == write_alone(request, seed)
    assert [bench.cached(request.id) for request in requests] == [0, 20, 20, 20]  # whole blocks


def test_written_ids_are_reused_by_the_next_turn() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    bench.add(ask("turn1", [1, 2, 3, 4], max_tokens=9, ignore_eos=True))
    bench.run()
    bench.add(ask("turn2", [1, 2, 3, 4, *bench.ids("turn1"), 5], max_tokens=2))
    bench.run()
    assert bench.cached("turn2") == 12


def test_the_beginning_of_a_block_is_known_too() -> None:
    """A prompt that leaves the known one in the middle of a block would compute the whole block again."""
    bench = Bench(num_blocks=64, block_size=4)
    bench.add(ask("turn1", [1, 2, 3, 4, 5, 6], max_tokens=5, ignore_eos=True))
    bench.run()
    turn1 = [1, 2, 3, 4, 5, 6, *bench.ids("turn1")]  # 11 ids, of which the last was written and never computed
    for id, prompt, known in (("other", [1, 2, 3, 4, 5, 2, 2], 5), ("next", [*turn1, 5, 5], 10), ("again", turn1, 10)):
        bench.add(request := ask(id, prompt, max_tokens=4, seed=3))
        bench.run()
        assert bench.cached(id) == known - known % 4
        assert bench.ids(id) == write_alone(request, 3)


def test_blocks_are_shared_but_not_copied_where_copying_does_not_pay() -> None:
    bench = Bench(num_blocks=64, block_size=4, copies_blocks=False)
    for id in ("a", "b"):
        bench.add(ask(id, [1, 2, 3, 4, 5, 6, 1], max_tokens=2, seed=4))
        bench.run()
    assert bench.cached("b") == 4


def test_without_prefix_cache_nothing_is_shared() -> None:
    bench = Bench(num_blocks=64, block_size=4, caching=False)
    for id in ("a", "b"):
        bench.add(ask(id, [1, 2, 3, 4, 5, 6, 1, 2], max_tokens=2, seed=4))
        bench.run()
    assert bench.cached("b") == 0
    assert bench.blocks.num_cached == 0


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_abort_at_any_moment_returns_every_block(steps: int) -> None:
    """Queued, in prefill (1 and 2 steps), and in decode."""
    bench = Bench(num_blocks=16, block_size=4, max_batch_tokens=4)
    bench.add(ask("a", [1, 2, 3, 4, 5, 6, 1, 2, 3], max_tokens=20, ignore_eos=True))
    for _ in range(steps):
        bench.step()
    bench.scheduler.abort("a")
    bench.scheduler.check()
    assert bench.blocks.num_used == 0
    assert not bench.step()


def test_abort_of_a_promised_prefix_lets_the_waiting_one_compute_it() -> None:
    bench = Bench(num_blocks=32, block_size=4, max_batch_tokens=4)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    bench.add(ask("a", prompt, max_tokens=2, seed=1))
    bench.step()
    bench.add(ask("b", prompt, max_tokens=2, seed=1))
    bench.step()
    bench.scheduler.abort("a")
    bench.run()
    assert bench.ids("b") == write_alone(ask("b", prompt, max_tokens=2), 1)


def test_newest_gives_way_when_blocks_run_out_and_ends_all_the_same() -> None:
    bench = Bench(num_blocks=40, block_size=2, max_batch_tokens=16)
    bench.scheduler.queue.record_finish(1)  # replies are said to be short, so that too many are let in
    requests = [ask(f"r{seed}", [seed + 1] * 3, max_tokens=60, seed=seed, ignore_eos=True) for seed in range(4)]
    for request in requests:
        bench.add(request)
    bench.run()
    assert bench.scheduler.counts.preemptions > 0
    for seed, request in enumerate(requests):
        assert bench.ids(request.id) == write_alone(request, seed)
        assert bench.end(request.id) == "length"
    first = [mail for mail in bench.told["r0"] if isinstance(mail, Delta)]
    assert len(first) == 61, "the oldest one wrote an id at every step"


def test_worst_case_is_reserved_until_replies_have_been_seen_to_end() -> None:
    bench = Bench(num_blocks=10, block_size=2)
    for id in ("a", "b", "c"):
        bench.add(ask(id, [1, 2], max_tokens=8, ignore_eos=True))
    bench.run()
    assert bench.scheduler.counts.preemptions == 0
    assert {bench.end(id) for id in ("a", "b", "c")} == {"length"}


def test_request_that_can_never_fit_is_refused_at_once() -> None:
    bench = Bench(num_blocks=4, block_size=4, max_model_len=100)
    assert not bench.add(ask("a", [1] * 10, max_tokens=7))
    assert bench.end("a") == "too_long"
    assert bench.add(ask("b", [1] * 10, max_tokens=6, ignore_eos=True))
    bench.run()
    assert bench.end("b") == "length"


def test_request_beyond_the_window_names_both_numbers() -> None:
    bench = Bench(num_blocks=100, block_size=4, max_model_len=20)
    bench.add(ask("a", [1] * 15, max_tokens=6))
    mail = bench.told["a"][-1]
    assert isinstance(mail, Failed)
    assert mail.kind == "too_long"
    assert "15 tokens" in mail.text
    assert "20" in mail.text


def test_foreign_ids_are_refused_before_they_break_the_batch() -> None:
    bench = Bench(num_blocks=8, block_size=4)
    assert not bench.add(ask("a", [1, 99]))
    assert not bench.add(ask("b", [1], logit_bias={99: 1.0}))
    assert not bench.add(ask("c", []))
    assert [bench.end(id) for id in ("a", "b", "c")] == ["unsupported"] * 3


def test_full_queue_is_said_with_a_time_to_come_back() -> None:
    bench = Bench(num_blocks=8, block_size=4, max_running=1, max_queue=2)
    accepted = [bench.add(ask(f"r{index}", [1, 2], max_tokens=2)) for index in range(4)]
    assert accepted == [True, True, True, False]
    mail = bench.told["r3"][-1]
    assert isinstance(mail, Failed)
    assert mail.kind == "queue_full"
    assert mail.retry_after_s is not None
    bench.run()
    assert all(bench.end(f"r{index}") in ("stop", "length") for index in range(3))


def test_queue_of_none_still_lets_requests_run() -> None:
    bench = Bench(num_blocks=8, block_size=4, max_running=2, max_queue=0)
    assert [bench.add(ask(f"r{index}", [1])) for index in range(3)] == [True, True, False]


def test_retry_after_follows_the_drain_rate() -> None:
    bench = Bench(num_blocks=8, block_size=4, max_running=1, max_queue=30)
    for index in range(20):
        bench.add(ask(f"r{index}", [1, 2], max_tokens=1))
    for _ in range(10):
        bench.step()
        bench.clock.now_s += 2.0
    assert 15 <= bench.scheduler.queue.retry_after_s() <= 30


def test_same_id_twice_is_refused() -> None:
    bench = Bench(num_blocks=8, block_size=4)
    assert bench.add(ask("a", [1]))
    assert bench.scheduler.add(ask("a", [1])) is None


def test_forced_ids_are_written_without_being_sampled() -> None:
    bench = Bench(num_blocks=16, block_size=4, max_batch_tokens=64)
    request = ask("a", [1, 2], max_tokens=20, constraint=Constraint("4 5 6 ? 5 5 5 ? 6 6"), seed=2)
    bench.add(request)
    bench.run()
    assert bench.ids("a") == write_alone(request, 2)
    assert bench.model.num_steps == 2, "one pass for each id that has alternatives"
    assert sum(mail.forced for mail in bench.told["a"] if isinstance(mail, Delta)) == 8
    assert bench.end("a") == "stop", "nothing could follow, so no stop id was sampled"


def test_forced_ids_have_logprobs_when_asked_for() -> None:
    bench = Bench(num_blocks=16, block_size=4)
    constraint = Constraint("4 5 ? 6")
    bench.add(ask("a", [1, 2], max_tokens=20, constraint=constraint, num_logprobs=0))
    bench.run()
    deltas = [mail for mail in bench.told["a"] if isinstance(mail, Delta)]
    logprobs = [entry.token_id for mail in deltas for entry in mail.logprobs or []]
    assert logprobs == bench.ids("a")
    assert len(logprobs) == 4


def test_constraint_that_is_forced_whole_needs_no_step() -> None:
    bench = Bench(num_blocks=16, block_size=4)
    bench.add(ask("a", [1, 2], max_tokens=20, constraint=Constraint("4 5 6")))
    bench.run()
    assert bench.ids("a") == [4, 5, 6]
    assert bench.end("a") == "stop"


def test_forced_ids_end_at_max_tokens() -> None:
    bench = Bench(num_blocks=16, block_size=4)
    bench.add(ask("a", [1, 2], max_tokens=2, constraint=Constraint("4 5 6")))
    bench.run()
    assert bench.ids("a") == [4, 5]
    assert bench.end("a") == "length"


def test_drafts_change_the_number_of_steps_and_nothing_else() -> None:
    request = ask("a", [1, 2, 3, 1, 2, 3] * 4, max_tokens=60, seed=11, ignore_eos=True, trace=True)
    plain, drafting = Bench(64, 4), Bench(64, 4, draft_tokens=4)
    for bench in (plain, drafting):
        bench.add(request)
        bench.run()
    assert plain.ids("a") == drafting.ids("a") == write_alone(request, 11)
    counts, traces = drafting.scheduler.counts, [mail.trace for mail in drafting.deltas("a") if mail.trace is not None]
    assert counts.drafted_tokens == sum(trace.drafted for trace in traces) > 0
    assert counts.accepted_tokens == sum(trace.accepted for trace in traces)
    assert drafting.model.num_steps <= plain.model.num_steps


def test_more_streams_than_tokens_in_a_step_take_turns() -> None:
    bench = Bench(num_blocks=64, block_size=4, max_batch_tokens=3, max_running=8)
    for index in range(6):
        bench.add(ask(f"r{index}", [1, 2], max_tokens=5, ignore_eos=True))
    bench.run(max_steps=60)
    assert all(len(bench.ids(f"r{index}")) == 5 for index in range(6))


def test_sequence_that_is_still_compiling_is_passed_over() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    slow = bench.scheduler.add(ask("slow", [1, 2, 3], max_tokens=2))
    assert slow is not None
    bench.add(ask("quick", [1, 2, 4], max_tokens=2))
    bench.run()
    assert bench.end("quick") is not None
    bench.scheduler.begin(slow)
    bench.run()
    assert bench.end("slow") is not None


def test_first_delta_comes_when_blocks_are_given_not_before() -> None:
    bench = Bench(num_blocks=64, block_size=4, max_running=1)
    bench.add(ask("a", [1, 2, 3], max_tokens=3, ignore_eos=True))
    bench.add(ask("b", [4, 2, 3], max_tokens=3, ignore_eos=True))
    bench.step()
    assert "a" in bench.told
    assert "b" not in bench.told
    bench.run()
    first = bench.told["b"][0]
    assert isinstance(first, Delta)
    assert (first.token_ids, first.cached) == ([], 0)


def test_nobody_new_starts_while_memory_admits_nobody() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    bench.add(ask("a", [1, 2, 3], max_tokens=6, ignore_eos=True))
    bench.step()
    bench.add(ask("b", [1, 2, 3], max_tokens=2))
    for _ in range(8):
        bench.step(admit=False)
    assert bench.end("a") == "length"
    assert "b" not in bench.told
    bench.run()
    assert bench.end("b") is not None


def test_waiting_for_memory_ends_with_a_reason() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    bench.add(ask("a", [1, 2, 3]))
    bench.step(admit=False)
    bench.clock.now_s += 29
    bench.step(admit=False)
    assert "a" not in bench.told
    bench.clock.now_s += 2
    bench.step(admit=False)
    assert bench.end("a") == "no_memory"


def test_step_out_of_memory_is_retried_smaller_with_the_same_outcome() -> None:
    bench = Bench(num_blocks=64, block_size=4, max_batch_tokens=32)
    bench.model.fail_above = 3
    requests = [ask(f"r{seed}", [1, 2, 3, seed + 1, 5], max_tokens=6, seed=seed) for seed in range(5)]
    for request in requests:
        bench.add(request)
    bench.run()
    for seed, request in enumerate(requests):
        assert bench.ids(request.id) == write_alone(request, seed)


def test_only_what_cannot_run_alone_fails_for_want_of_memory() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    bench.model.fail_above = 0
    bench.add(ask("a", [1, 2, 3]))
    bench.add(ask("b", [1, 2, 3]))
    for _ in range(40):
        bench.step()
    assert (bench.end("a"), bench.end("b")) == ("no_memory", "no_memory")
    bench.model.fail_above = 1000
    bench.add(ask("c", [1, 2, 3], max_tokens=2))
    bench.run()
    assert bench.end("c") in ("stop", "length")


def test_stop_id_is_told_and_ends_the_reply() -> None:
    bench = Bench(num_blocks=64, block_size=4)
    for seed in range(30):
        bench.add(ask(f"r{seed}", [1, 2], max_tokens=50, seed=seed))
    bench.run()
    for seed in range(30):
        ids = bench.ids(f"r{seed}")
        assert STOP not in ids[:-1]
        assert bench.end(f"r{seed}") == ("stop" if ids[-1] == STOP else "length")


def test_short_prompt_is_not_held_up_by_a_long_one_before_it() -> None:
    bench = Bench(num_blocks=600, block_size=4, max_batch_tokens=100, max_model_len=2400)
    bench.add(ask("long", [3] * 2000, max_tokens=2))
    bench.add(ask("longer", [4] * 2000, max_tokens=2))
    bench.add(ask("short", [1] * 10, max_tokens=2, ignore_eos=True))
    bench.step()
    bench.step()
    assert bench.end("short") == "length"
    bench.run()
    assert bench.end("long") is not None
    assert bench.end("longer") is not None


def test_broken_logits_end_one_request_and_its_blocks_are_not_reused() -> None:
    bench = Bench(num_blocks=32, block_size=4)
    bench.add(ask("bad", [1, 2, 3, 4, 5, 6], max_tokens=4))
    bench.add(ask("good", [2, 2, 3, 4, 5, 6], max_tokens=4, seed=1))
    bench.model.broken_seed = 0
    bench.run()
    assert bench.end("bad") == "request_failed"
    assert bench.ids("good") == write_alone(ask("good", [2, 2, 3, 4, 5, 6], max_tokens=4), 1)
    bench.add(ask("again", [1, 2, 3, 4, 5, 6], max_tokens=1, seed=5))
    bench.run()
    assert bench.cached("again") == 0


def stages(bench: Bench, id: str) -> list[tuple[str, float]]:
    return [(one.stage, one.time_s) for delta in bench.deltas(id) for one in delta.stage_times]


def test_stages_are_told_with_their_times() -> None:
    """A prompt of two steps: it arrives at 1 s, is admitted at 2, and each step ends a second later."""
    bench = Bench(num_blocks=16, block_size=4, max_batch_tokens=4)
    bench.clock.advance(1)
    bench.add(ask("a", [1, 2, 3, 4, 5, 6], max_tokens=2, ignore_eos=True))
    bench.model.on_launch = lambda _: bench.clock.advance(1)
    bench.clock.advance(1)
    bench.run()
    assert stages(bench, "a") == [("arrived", 1), ("admitted", 2), ("prefilled", 4), ("ended", 5)]


def test_a_preempted_sequence_tells_when_it_was_put_back_and_resumed() -> None:
    bench = Bench(num_blocks=6, block_size=4, max_batch_tokens=16)
    for id in ("a", "b"):
        bench.add(ask(id, [1, 2, 3, int(id, 16) % 7], max_tokens=14, ignore_eos=True))
    bench.run()
    names = [stage for stage, _ in stages(bench, "b")]
    assert bench.scheduler.counts.preemptions >= 1
    assert names[:2] == ["arrived", "admitted"] and names[-1] == "ended"
    assert names.count("preempted") == names.count("resumed") == bench.scheduler.counts.preemptions
    assert names.count("prefilled") == 1


def test_a_reply_that_is_forced_whole_has_no_prefill() -> None:
    bench = Bench(num_blocks=16, block_size=4)
    bench.add(ask("a", [1, 2, 3], constraint=Constraint("start: <[3]> <[4]>"), max_tokens=2))
    bench.run()
    assert [stage for stage, _ in stages(bench, "a")] == ["arrived", "ended"]


def test_drafts_take_no_lines_from_other_sequences_and_none_among_many() -> None:
    """Memory for logits is set aside for one line of each running sequence; among many, drafts cost more than that."""
    limits = Bench(64, 4, draft_tokens=4, max_running=8).scheduler.limits
    assert [limits.num_spare_lines(num) for num in (1, 4, 8, 9)] == [7, 4, 0, 0]
    alone = Bench(64, 4, draft_tokens=4, max_running=1).scheduler.limits
    assert alone.num_spare_lines(1) == 4
    wide = Bench(64, 4, draft_tokens=4, max_running=256).scheduler.limits
    assert [wide.num_spare_lines(num) for num in (1, 15, 16, 40)] == [15, 1, 0, 0]
