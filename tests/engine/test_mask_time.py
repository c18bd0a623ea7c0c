"""Rows whose masks are slow wait for their turn; all others are in every step."""

from server.messages import Constraint
from tests.engine.toys import Bench, ToyGrammars, ToyMatcher, ask, write_alone


class SlowGrammars(ToyGrammars):
    """Masks of the source `? ? ? ? ? ?` take 12 ms each."""

    def compile(self, constraint: Constraint) -> ToyMatcher:
        matcher = super().compile(constraint)
        matcher.mask_s = 0.012 if len(matcher.pattern) == 6 else 0.0002
        return matcher


def test_slow_masks_of_a_crowd_leave_every_step_to_the_others() -> None:
    bench = Bench(64, 4, max_running=16, max_batch_tokens=64)
    bench.grammars = SlowGrammars()
    slow = [ask(f"slow{index}", [1, 2], seed=index, constraint=Constraint("? ? ? ? ? ?")) for index in range(12)]
    others = [ask("free", [1, 2], max_tokens=12, ignore_eos=True, seed=1)]
    others += [ask("fast", [1, 2], max_tokens=12, seed=1, constraint=Constraint(" ".join("?" * 12)))]
    for request in (*slow, *others):
        assert bench.add(request)
    for num_steps in range(1, 13):
        assert bench.step()
        assert [len(bench.ids(request.id)) for request in others] == [num_steps] * 2
        written = [len(bench.ids(request.id)) for request in slow]
        assert sum(written) == 2 * num_steps, "two masks of 12 ms fit"
        assert max(written) - min(written) <= 1, "each gets its turn"
    bench.run()
    for request in (*slow, *others):
        assert bench.ids(request.id) == write_alone(request, request.sampling.seed or 0)
