"""The loop over a toy model: everyone who asks is told something, whatever breaks."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from server.engine import compiler
from server.engine.blocks import Blocks
from server.engine.compiler import MAX_HUNG_THREADS, Compiler, GrammarsHang
from server.engine.loop import EngineParts, Loop
from server.engine.scheduler import Scheduler
from server.messages import (
    Abort,
    Constraint,
    Delta,
    EngineFailed,
    Failed,
    FromEngine,
    Generate,
    Pulse,
    Shutdown,
    ToEngine,
)
from server.model.batch import Batch
from tests.engine.toys import (
    STOP,
    VOCAB,
    Clock,
    ToyAllowance,
    ToyGrammars,
    ToyGuard,
    ToyMatcher,
    ToyModel,
    ToySamples,
    ask,
    make_limits,
    write_alone,
)


@dataclass
class ToyMailbox:
    """Hands over one script entry at each receive; then waits for wakes, and ends the loop once all is told."""

    clock: Clock
    script: list[list[ToEngine]]
    wanted: set[str]
    sent: list[list[FromEngine]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    woken: threading.Event = field(default_factory=threading.Event)

    def receive(self, timeout_s: float) -> list[ToEngine]:
        self.waits.append(timeout_s)
        if self.script:
            return self.script.pop(0)
        if self.wanted <= self.ended() or len(self.waits) > 2000:
            return [Shutdown()]
        if timeout_s > 0 and self.woken.wait(0.01):
            self.woken.clear()
        self.clock.advance(min(timeout_s, 0.5))
        return []

    def send(self, mail: list[FromEngine]) -> None:
        assert mail
        self.sent.append(mail)

    def wake(self) -> None:
        self.woken.set()

    def ended(self) -> set[str]:
        return {
            mail.id
            for frame in self.sent
            for mail in frame
            if isinstance(mail, Failed) or (isinstance(mail, Delta) and mail.finish is not None)
        }


@dataclass
class ToyPool:
    """Remembers what was released and restored."""

    acts: list[tuple[str, int]] = field(default_factory=list)
    on_act: Callable[[], None] = lambda: None

    def release(self, first_block: int) -> None:
        self.on_act()
        self.acts.append(("release", first_block))

    def restore(self, num_blocks: int) -> int:
        self.on_act()
        self.acts.append(("restore", num_blocks))
        return num_blocks


class Stage:
    """A loop with everything it needs; `play` runs it to its end."""

    def __init__(
        self,
        *script: list[ToEngine],
        grammars: ToyGrammars | None = None,
        timeout_s: float = 20.0,
        overlap: bool = False,
    ) -> None:
        wanted = {mail.id for frame in script for mail in frame if isinstance(mail, Generate)}
        self.clock = Clock()
        self.mailbox = ToyMailbox(self.clock, list(script), wanted)
        self.blocks = Blocks(32, 4)
        limits = make_limits(cache_tokens=128, max_running=4, overlap=overlap)
        self.scheduler = Scheduler(limits, self.blocks, None, self.clock)
        self.model, self.pool = ToyModel(4), ToyPool()
        self.guard = ToyGuard(ToyAllowance(32))
        self.parts = EngineParts(self.model, self.pool, grammars or ToyGrammars(), self.guard)
        compiler = Compiler(self.parts.grammars, self.mailbox.wake, self.clock, timeout_s)
        self.loop = Loop(self.mailbox, self.scheduler, self.parts, compiler, self.clock)

    def play(self) -> "Stage":
        self.loop.run()
        self.scheduler.check()
        assert self.blocks.num_used == 0
        return self

    def told(self, id: str) -> list[Delta | Failed]:
        return [
            mail for frame in self.mailbox.sent for mail in frame if isinstance(mail, Delta | Failed) and mail.id == id
        ]

    def ids(self, id: str) -> list[int]:
        return [token_id for mail in self.told(id) if isinstance(mail, Delta) for token_id in mail.token_ids]

    def failure(self, id: str) -> Failed:
        last = self.told(id)[-1]
        assert isinstance(last, Failed)
        return last

    def pulses(self) -> list[Pulse]:
        return [mail for frame in self.mailbox.sent for mail in frame if isinstance(mail, Pulse)]


def test_admission_is_told_before_the_first_step_is_computed() -> None:
    stage = Stage([ask("a", [1, 2, 3], max_tokens=3, seed=2)])
    seen: list[int] = []
    stage.model.on_launch = lambda _: seen.append(len(stage.told("a")))
    stage.play()
    assert seen[0] == 1
    first = stage.told("a")[0]
    assert isinstance(first, Delta)
    assert (first.token_ids, first.cached) == ([], 0)
    assert stage.ids("a") == write_alone(ask("a", [1, 2, 3], max_tokens=3), 2)


def test_one_frame_holds_the_deltas_of_a_step() -> None:
    stage = Stage([ask(f"r{index}", [1, index + 1], max_tokens=4, ignore_eos=True) for index in range(3)]).play()
    frames = [[mail.id for mail in frame if isinstance(mail, Delta)] for frame in stage.mailbox.sent]
    assert ["r0", "r1", "r2"] in frames


def test_constraint_compiles_beside_the_steps_and_holds() -> None:
    request = ask("a", [1, 2], max_tokens=20, constraint=Constraint("4 ? 5 ?"), seed=3)
    stage = Stage([request]).play()
    assert stage.ids("a") == write_alone(request, 3)


@pytest.mark.parametrize("source", ["bad", "panic"])
def test_constraint_that_does_not_compile_is_refused_alone(source: str) -> None:
    good = ask("good", [1, 2], max_tokens=4, seed=1)
    stage = Stage([ask("bad", [1, 2], constraint=Constraint(source)), good]).play()
    assert stage.failure("bad").kind == "bad_constraint"
    assert len(stage.told("bad")) == 1, "a refusal comes before any admission"
    assert stage.ids("good") == write_alone(good, 1)


class HangingGrammars(ToyGrammars):
    """The source `hang` compiles until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def compile(self, constraint: Constraint) -> ToyMatcher:
        if constraint.source.startswith("hang"):
            self.let_go.wait(30)
        return super().compile(constraint)


class CountingGrammars(ToyGrammars):
    """Records what is compiled, each for as long as an arrival of others takes."""

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def compile(self, constraint: Constraint) -> ToyMatcher:
        self.compiled.append(constraint.source)
        time.sleep(0.01)
        return super().compile(constraint)


def test_too_many_grammars_that_hang_end_the_engine_by_name() -> None:
    """Each keeps a core busy for ever; the requests are refused first, so that the next engine does not get them."""
    grammars = HangingGrammars()
    hanging: list[ToEngine] = [
        ask(f"hang{index}", [1], constraint=Constraint(f"hang {index}")) for index in range(MAX_HUNG_THREADS)
    ]
    stage = Stage(hanging, grammars=grammars, timeout_s=5.0)
    with pytest.raises(GrammarsHang):
        stage.loop.run()
    grammars.let_go.set()
    assert all(stage.failure(f"hang{index}").kind == "bad_constraint" for index in range(MAX_HUNG_THREADS))
    assert stage.mailbox.sent[-1][-1] == EngineFailed("GrammarsHang: 4 grammars compile without an end")


def test_constraints_that_hang_are_refused_and_others_still_compile() -> None:
    grammars = HangingGrammars()
    hanging: list[ToEngine] = [ask(f"hang{index}", [1], constraint=Constraint("hang")) for index in range(2)]
    late = ask("late", [1], max_tokens=9, constraint=Constraint("4 ? 4"), seed=1)
    stage = Stage(hanging, [ask("free", [1, 2], max_tokens=2)], [late], grammars=grammars, timeout_s=5.0)
    stage.play()
    grammars.let_go.set()
    assert [stage.failure(f"hang{index}").kind for index in range(2)] == ["bad_constraint"] * 2
    assert stage.ids("free")
    assert stage.ids("late") == write_alone(late, 1)


def test_many_new_constraints_do_not_stop_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for each message's grammar in turn stopped every reply for 2 ms times their number."""
    grammars = HangingGrammars()
    crowd: list[ToEngine] = [ask(f"c{index}", [1], constraint=Constraint(f"hang {index}")) for index in range(100)]
    stage = Stage([ask("free", [1, 2], max_tokens=40, ignore_eos=True)], [], [], crowd, grammars=grammars)
    stage.mailbox.wanted = {"free"}
    waits: list[float] = []
    num_waits: list[int] = []  # before each step

    def counted(futures: list[Future[Any]], timeout_s: float) -> Any:
        waits.append(timeout_s)
        return wait(futures, timeout_s)

    monkeypatch.setattr(compiler, "wait", counted)
    stage.model.on_launch = lambda _: num_waits.append(len(waits))
    stage.play()
    grammars.let_go.set()
    assert len(num_waits) > 20 and waits
    assert max(after - before for before, after in pairwise(num_waits)) <= 1


def test_equal_constraints_of_many_requests_compile_once() -> None:
    grammars = CountingGrammars()
    crowd = [ask(f"c{index}", [1], constraint=Constraint("4 ? 5 ?"), seed=index) for index in range(50)]
    stage = Stage([*crowd], grammars=grammars).play()
    assert grammars.compiled == ["4 ? 5 ?"]
    for request in crowd:
        assert stage.ids(request.id) == write_alone(request, request.sampling.seed or 0)


def test_abort_while_compiling_leaves_nothing_behind() -> None:
    grammars = HangingGrammars()
    stage = Stage([ask("a", [1], constraint=Constraint("hang"))], [Abort("a")], grammars=grammars)
    stage.mailbox.wanted.clear()
    stage.play()
    grammars.let_go.set()
    assert stage.told("a") == []


def test_abort_of_an_unknown_id_is_ignored() -> None:
    stage = Stage([Abort("nobody")], [ask("a", [1], max_tokens=2)]).play()
    assert stage.ids("a")


def test_out_of_memory_is_told_to_the_guard_and_retried() -> None:
    request = ask("a", [1, 2, 3, 4, 5], max_tokens=5, seed=4)
    stage = Stage([request])
    stage.model.fail_above = 2
    stage.play()
    assert stage.guard.ooms > 0
    assert stage.ids("a") == write_alone(request, 4)


def test_a_crash_is_reported_behind_all_ids_written_before() -> None:
    """The backend gives each reply to the next engine from the last id that it knows."""
    stage = Stage([ask("a", [1, 2], max_tokens=9, ignore_eos=True)], [ask("b", [1, 3], max_tokens=9, ignore_eos=True)])

    def break_down(_: int) -> None:
        if stage.model.num_steps == 3:
            raise RuntimeError("the device is gone")

    stage.model.on_launch = break_down
    with pytest.raises(RuntimeError, match="the device is gone"):
        stage.loop.run()
    assert stage.mailbox.sent[-1][-1] == EngineFailed("RuntimeError: the device is gone")
    assert len(stage.ids("a")) == 2


def test_heart_beats_while_idle_without_spinning() -> None:
    stage = Stage(*([] for _ in range(20)))
    receive = stage.mailbox.receive

    def pass_time(timeout_s: float) -> list[ToEngine]:
        stage.clock.advance(timeout_s)
        return receive(timeout_s)

    stage.mailbox.receive = pass_time  # type: ignore[method-assign]
    stage.play()
    assert 19 <= len(stage.pulses()) <= 22
    assert all(wait > 0.5 for wait in stage.mailbox.waits[1:])


def test_a_smaller_allowance_is_applied_reported_at_once_and_its_memory_freed() -> None:
    stage = Stage([ask("a", [1, 2, 3], max_tokens=12, ignore_eos=True)])
    allowances = {2: ToyAllowance(8, admit=False), 5: ToyAllowance(32)}
    pulses: list[int] = []

    def change(_: int) -> None:
        stage.clock.advance(0.2)
        stage.guard.allowed = allowances.get(stage.model.num_steps, stage.guard.allowed)
        pulses.append(len(stage.pulses()))

    stage.model.on_launch = change
    stage.play()
    assert stage.pool.acts == [("release", 8), ("restore", 32)]
    assert len(stage.ids("a")) == 12
    assert len(stage.pulses()) >= 4, "two changes and two seconds"


def test_memory_is_never_moved_under_a_step_in_flight() -> None:
    """A device that still computes would write where nothing is any more."""
    stage = Stage([ask("a", [1, 2, 3], max_tokens=12, ignore_eos=True)], overlap=True)
    allowances = {3: ToyAllowance(8), 7: ToyAllowance(32)}
    in_flight: list[bool] = []
    stage.pool.on_act = lambda: in_flight.append(stage.loop._pipeline.in_flight)

    def change(_: int) -> None:
        stage.guard.allowed = allowances.get(stage.model.num_steps, stage.guard.allowed)

    stage.model.on_launch = change
    stage.play()
    assert stage.pool.acts == [("release", 8), ("restore", 32)]
    assert in_flight == [False, False]
    assert stage.model.num_overlapped > 4
    assert len(stage.ids("a")) == 12


def test_an_engine_that_is_told_to_end_forgets_the_step_in_flight() -> None:
    stage = Stage([ask("a", [1, 2], max_tokens=50, ignore_eos=True)], [], [], [Shutdown()], overlap=True)
    stage.loop.run()
    assert stage.model.num_overlapped > 0
    assert 0 < len(stage.ids("a")) < 50


def test_stop_ids_that_the_model_cannot_write_are_dropped() -> None:
    """Banned while min_tokens was not reached, they were an IndexError in a step of many requests."""
    request = ask("a", [1, 2], max_tokens=5, min_tokens=5, stop_ids=(STOP, VOCAB, VOCAB + 9), seed=1)
    stage = Stage([request])
    banned: list[tuple[int, ...]] = []
    launch = stage.model.launch

    def record(batch: Batch) -> Batch:
        banned.extend(row.sampling.banned_ids for row in batch.rows if row.sampling is not None)
        return launch(batch)

    stage.model.launch = record  # type: ignore[method-assign]
    stage.play()
    assert set(banned) == {(STOP,)}
    assert len(stage.ids("a")) == 5


def test_results_that_are_not_those_of_the_rows_end_the_engine() -> None:
    """They would be written into the replies of other requests."""
    stage = Stage([ask("a", [1, 2]), ask("b", [1, 3])])
    sample = stage.model.sample

    def short_of_one(*parts: Any) -> ToySamples:
        pending = sample(*parts)
        return ToySamples(pending.sampled[:-1], pending.ids)

    stage.model.sample = short_of_one  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="1 results for 2 rows"):
        stage.loop.run()
