"""A reply that another engine has begun goes on as if it had been written in one."""

import msgspec
import pytest

from server.engine.slots import Slots
from server.messages import Constraint, Delta, Generate, ReasoningPhase
from tests.engine.toys import Bench, ask

PHASE = ReasoningPhase(6, limit=4, close_ids=(5, 6))
REQUESTS = {
    "sampled": ask("a", [1, 2, 3], 30, seed=5, ignore_eos=True),
    "min tokens": ask("a", [1, 2], 40, seed=2, min_tokens=20),
    "constrained": ask("a", [1, 2], 30, seed=3, constraint=Constraint("4 5 ? ? 6 6 ? 4 ? ? 5 5")),
    "reasoning": ask("a", [2, 2], 40, seed=4, reasoning_phase=PHASE, constraint=Constraint("? 4 ? ? 5 ? 6")),
    "undecided": ask("a", [3, 1], 40, seed=22, ignore_eos=True, reasoning_phase=ReasoningPhase(6, open_id=2, limit=3)),
    "logprobs": ask(
        "a", [2, 1], 40, seed=9, num_logprobs=0, reasoning_phase=PHASE, constraint=Constraint("? 4 ? ? 5 ? 6")
    ),
}


def deltas_of(request: Generate, *, hybrid: bool = False) -> list[Delta]:
    bench = Bench(64, 4, Slots(4, 4) if hybrid else None, draft_tokens=0 if hybrid else 2)
    assert bench.add(request)
    bench.run()
    return list(bench.deltas("a"))


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_it_writes_the_same_from_wherever_it_was_cut(request_: Generate, hybrid: bool) -> None:
    """Seed index, constraint, reasoning phase, limits and logprobs must count what is written already."""
    whole = deltas_of(request_, hybrid=hybrid)
    ids = [token_id for delta in whole for token_id in delta.token_ids]
    assert len(ids) >= 7
    written: list[int] = []
    for delta in whole[:-1]:
        written += delta.token_ids
        rest = deltas_of(msgspec.structs.replace(request_, reply_ids=list(written)), hybrid=hybrid)
        assert [token_id for more in rest for token_id in more.token_ids] == ids[len(written) :]
        assert rest[-1].finish == whole[-1].finish
        if request_.sampling.num_logprobs is not None:
            scores = [one.token_id for more in rest for one in more.logprobs or ()]
            assert scores == ids[len(written) :]


def test_what_is_written_already_is_neither_prompt_nor_output_of_this_engine() -> None:
    bench = Bench(64, 4)
    bench.add(ask("a", [1, 2, 3], 6, seed=1, ignore_eos=True, reply_ids=[1, 2, 3, 4]))
    bench.run()
    assert (bench.scheduler.counts.prompt_tokens, bench.scheduler.counts.output_tokens) == (3, 2)


def test_a_resumed_reply_shares_cached_blocks_with_its_own_salt_only() -> None:
    """The blocks of a reply that goes on in another engine would else be found by requests of other keys."""
    bench = Bench(64, 4)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    bench.add(ask("a", prompt, 6, seed=1, ignore_eos=True, reply_ids=[1, 2, 3, 4], cache_salt="alice"))
    bench.run()
    for id, salt, num_cached in (("b", "bob", 0), ("c", "", 0), ("d", "alice", 12)):
        bench.add(ask(id, [*prompt, 1, 2, 3, 4, 5], 1, cache_salt=salt))
        bench.run()
        assert next(iter(bench.deltas(id))).cached == num_cached
