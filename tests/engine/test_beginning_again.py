"""A recurrent state that a failed step may have moved is thrown away: its sequence goes on from the last one kept."""

import pytest

from server.engine.cache import RESTART_INTERVAL_BLOCKS
from server.engine.slots import Slots
from tests.engine.toys import STOP, Bench, ask, write_alone

SIZE = 4
SLOTS = 2


def hybrid(num_snapshots: int, max_batch_tokens: int = 64) -> Bench:
    return Bench(800, SIZE, Slots(SLOTS, num_snapshots), max_batch_tokens=max_batch_tokens, max_model_len=3000)


def prompt_of(length: int) -> list[int]:
    return [1 + (index * index) % 6 for index in range(length)]


def run_out(bench: Bench) -> int:
    """The next step has no memory; how many tokens are computed until the sequence is where it was."""
    (sequence,) = bench.scheduler.running
    place, before = sequence.num_computed, bench.model.num_tokens
    bench.model.fail_above = 0
    bench.step()
    bench.model.fail_above = 1 << 30
    while sequence.num_computed < place:
        bench.step()
    return bench.model.num_tokens - before


def test_a_reply_goes_on_from_the_end_of_its_prompt_and_loses_nothing() -> None:
    """Without a snapshot every failure would cost the whole prompt again."""
    request = ask("a", prompt_of(50), 40, seed=3, ignore_eos=True)
    bench = hybrid(num_snapshots=4)
    bench.add(request)
    while len(bench.ids("a")) < 10:
        bench.step()
    told = bench.ids("a")
    assert run_out(bench) <= 10 + 2 * SIZE  # what was written, and the prompt's last block
    assert bench.ids("a")[:10] == told
    while len(bench.ids("a")) < 25:
        bench.step()
    assert run_out(bench) <= 15 + 2 * SIZE  # the second time it begins where it began again
    bench.run()
    assert bench.ids("a") == write_alone(request, 3)


def test_without_snapshots_it_begins_at_the_beginning_and_loses_nothing_either() -> None:
    request = ask("a", prompt_of(50), 20, seed=3, ignore_eos=True)
    bench = hybrid(num_snapshots=0)
    bench.add(request)
    while len(bench.ids("a")) < 10:
        bench.step()
    assert run_out(bench) >= 59
    bench.run()
    assert bench.ids("a") == write_alone(request, 3)


@pytest.mark.parametrize("num_snapshots", [1, 3])
def test_a_long_prompt_goes_on_from_its_last_mark(num_snapshots: int) -> None:
    """At the last chunk of a long prompt, a failure would otherwise cost all chunks before."""
    mark = RESTART_INTERVAL_BLOCKS * SIZE
    request = ask("a", prompt_of(2 * mark + 300), 5, seed=1)
    bench = hybrid(num_snapshots)
    bench.add(request)
    (sequence,) = bench.scheduler.queue.sequences
    while sequence.num_computed < 2 * mark + 200:
        bench.step()
    assert run_out(bench) <= sequence.num_computed - 2 * mark
    bench.run()
    assert bench.ids("a") == write_alone(request, 1)


def test_marks_of_a_long_prompt_leave_what_others_begin_from() -> None:
    """Three slots: the prompt of before, the newest mark, the end of the long prompt."""
    bench = hybrid(num_snapshots=3)
    known = prompt_of(40)
    bench.add(ask("known", [*known, 2], 1))
    bench.run()
    bench.add(ask("long", [6, *prompt_of(2 * RESTART_INTERVAL_BLOCKS * SIZE + 300)], 1))
    bench.run()
    bench.add(ask("again", [*known, 3], 1))
    bench.run()
    assert bench.cached("again") == 40
    assert bench.end("again") == ("stop" if bench.ids("again") == [STOP] else "length")


@pytest.mark.parametrize("length", range(40, 40 + SIZE))
def test_the_next_turn_begins_from_what_it_repeats(length: int) -> None:
    """Templates open a think block at the end of a prompt and leave it out of history: a state behind it is no use."""
    bench = hybrid(num_snapshots=3)
    common, think = prompt_of(length), [2, 2, 2]
    bench.add(ask("turn", [*common, *think], 1, num_volatile=len(think)))
    bench.run()
    bench.add(ask("next", [*common, 4, 4, 4, *think], 1, num_volatile=len(think)))
    bench.run()
    assert bench.cached("next") == length // SIZE * SIZE


def test_a_prompt_that_comes_again_begins_from_its_last_full_block() -> None:
    """Choices of one request share a prompt whole, its think block too."""
    bench = hybrid(num_snapshots=3)
    for id in ("first", "second", "third"):
        bench.add(ask(id, prompt_of(41), 1, num_volatile=3))
        bench.run()
    assert [bench.cached(id) for id in ("first", "second", "third")] == [0, 36, 40]
