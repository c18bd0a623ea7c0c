"""Random requests, aborted, short of blocks or of memory: every one ends once, with the reply of a lone run."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine.slots import Slots
from server.messages import Constraint, Generate, ReasoningPhase, StepTrace
from tests.engine.toys import Bench, ask, write_alone

HEADS: tuple[list[int], ...] = ([1, 2, 3, 4, 5, 6, 1, 2], [1, 2, 3, 4, 6, 6], [2, 1], [])
PATTERNS = (None, None, "4 5 ? 6 ? ?", "? ? 4 4 4 4", "5 5 5")
PREAMBLES = (None, None, ReasoningPhase(6), ReasoningPhase(6, open_id=5), ReasoningPhase(6, limit=2, close_ids=(4, 6)))
STEPS_PER_REQUEST = 150


@st.composite
def requests(draw: st.DrawFn, index: int) -> Generate:
    head = draw(st.sampled_from(HEADS))
    tail = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    pattern = draw(st.sampled_from(PATTERNS))
    max_tokens = draw(st.integers(1, 8))
    return ask(
        f"r{index}",
        [*head, *tail],
        max_tokens,
        seed=draw(st.integers(0, 50)),
        ignore_eos=draw(st.booleans()),
        min_tokens=draw(st.integers(0, 3)),
        num_logprobs=draw(st.sampled_from([None, None, 0])),
        constraint=None if pattern is None else Constraint(pattern),
        reasoning_phase=draw(st.sampled_from(PREAMBLES)),
        trace=draw(st.booleans()),
    )


def lone(request: Generate) -> tuple[list[int], str | None, list[int]]:
    """Written ids, end and forced places of a request alone, nothing appended and nothing drafted."""
    bench = Bench(num_blocks=100, block_size=4, max_batch_tokens=100, fast_forward=False)
    bench.add(request)
    bench.run()
    return bench.ids(request.id), bench.end(request.id), forced_places(bench, request.id)


def forced_places(bench: Bench, id: str) -> list[int]:
    """Places in the reply that its trace calls forced."""
    places, num_written = [], 0
    for mail in bench.deltas(id):
        trace = mail.trace or StepTrace()
        assert trace.accepted <= min(trace.drafted, len(mail.token_ids))
        places += [num_written + place for place in trace.forced]
        num_written += len(mail.token_ids)
    return places


@settings(suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_request_ends_once_and_as_if_it_had_run_alone(data: st.DataObject) -> None:
    draw = data.draw
    has_state = draw(st.booleans())
    num_blocks, block_size = draw(st.integers(12, 18)), draw(st.sampled_from([2, 3]))
    bench = Bench(
        num_blocks,
        block_size,
        slots=Slots(draw(st.integers(1, 4)), draw(st.integers(0, 3))) if has_state else None,
        caching=draw(st.booleans()),
        max_batch_tokens=draw(st.integers(1, 20)),
        max_running=draw(st.integers(1, 8)),
        fast_forward=draw(st.booleans()),
        draft_tokens=draw(st.integers(0, 4)),
        overlap=draw(st.booleans()),
    )
    bench.scheduler.queue.record_finish(draw(st.integers(1, 8)))
    asked: dict[str, Generate] = {}
    aborted: set[str] = set()
    for _ in range(draw(st.integers(1, 30))):
        act = draw(st.sampled_from(["ask", "ask", "group", "step", "step", "step", "abort", "resize", "memory"]))
        if act == "ask":
            request = draw(requests(len(asked)))
            asked[request.id] = request
            bench.add(request)
        elif act == "group":
            request = draw(requests(len(asked)))
            for choice in range(draw(st.integers(2, 4))):
                id = f"{request.id}.{choice}"
                asked[id] = ask(id, request.token_ids, 4, seed=choice)
                bench.add(asked[id])
        elif act == "step":
            bench.may_overlap = draw(st.booleans())
            bench.step(admit=draw(st.booleans()))
        elif act == "abort" and asked:
            id = draw(st.sampled_from(sorted(asked)))
            if bench.end(id) is None:
                aborted.add(id)
            bench.scheduler.abort(id)
            bench.scheduler.check()
        elif act == "resize":
            bench.resize(draw(st.integers(0, num_blocks)), preempt=draw(st.booleans()))
            bench.scheduler.check()
        elif act == "memory":
            bench.model.fail_above = draw(st.sampled_from([1, 2, 5, 1000]))
    bench.resize(num_blocks, preempt=False)
    bench.may_overlap = draw(st.booleans())
    bench.run(max_steps=STEPS_PER_REQUEST * (len(asked) + 1))
    for id, request in asked.items():
        if id in aborted:
            assert bench.end(id) is None
            assert lone(request)[0][: len(bench.ids(id))] == bench.ids(id)
            continue
        assert (bench.ids(id), bench.end(id), forced_places(bench, id)) == lone(request)
        if request.reasoning_phase is None:
            assert bench.ids(id) == write_alone(request, request.sampling.seed or 0)
        if request.sampling.num_logprobs is not None:
            told = [entry.token_id for mail in bench.deltas(id) for entry in mail.logprobs or ()]
            assert told == bench.ids(id)
    assert bench.blocks.num_used == 0
    assert not bench.scheduler.running
    assert len(bench.scheduler.queue) == 0
