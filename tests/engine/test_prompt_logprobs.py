"""Logprobs of a prompt: one for each id behind the first, whatever is cached, preempted or begun again."""

import random

import msgspec
import pytest

from server.engine.slots import Slots
from server.messages import Generate, TokenLogprob
from tests.engine.toys import VOCAB, Bench, ask, score_of

PROMPT = [1 + (3 * place + place // 7) % 7 for place in range(30)]


def scores(bench: Bench, id: str) -> list[TokenLogprob]:
    return [score for delta in bench.deltas(id) for score in delta.prompt_logprobs]


def truth(prompt: list[int], num_scored: int = 1) -> list[TokenLogprob]:
    return [score_of(prompt[:place], prompt[place]) for place in range(num_scored, len(prompt))]


def bench_of(hybrid: bool = False) -> Bench:
    return Bench(64, 4, Slots(4, 4) if hybrid else None)


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_a_cached_prompt_is_computed_again(max_tokens: int, hybrid: bool) -> None:
    """A prefix from the cache has no logits: its ids would have no logprobs."""
    bench = bench_of(hybrid)
    bench.add(ask("first", PROMPT, 3, ignore_eos=True))
    bench.run()
    bench.add(ask("scored", PROMPT, max_tokens, ignore_eos=True, prompt_logprobs=0, num_logprobs=0))
    bench.add(ask("plain", PROMPT, 3, ignore_eos=True))
    bench.run()
    assert scores(bench, "scored") == truth(PROMPT)
    assert (bench.cached("scored"), len(bench.ids("scored")), bench.end("scored")) == (0, max_tokens, "length")
    assert bench.cached("plain"), "a scored prompt must not keep others from the cache"
    assert bench.blocks.num_used == 0


def test_a_prompt_alone_is_computed_and_cached() -> None:
    """Without a reply and without logprobs: nothing is drawn, and the next request finds the prompt."""
    bench = bench_of()
    bench.add(ask("alone", PROMPT, 0))
    bench.run()
    bench.add(ask("next", PROMPT, 2, ignore_eos=True))
    bench.run()
    assert (bench.ids("alone"), bench.end("alone")) == ([], "length")
    assert bench.cached("next") == 28


def test_scored_prompts_and_replies_share_steps() -> None:
    """Results of rows that only score are mixed up with drawn ones, or scores come twice after a preemption."""
    choices = random.Random(4)
    bench = Bench(24, 4, max_batch_tokens=11, max_running=5)
    requests: list[Generate] = []
    for index in range(30):
        prompt = [*PROMPT[: 4 * choices.randrange(4)], *choices.choices(range(1, VOCAB), k=1 + choices.randrange(12))]
        scored = {"prompt_logprobs": 0, "num_logprobs": 0} if index % 3 else {}
        requests.append(ask(f"r{index}", prompt, choices.randrange(0 if scored else 1, 9), seed=index, **scored))
        bench.add(requests[-1])
        bench.step()
        if index % 4 == 3:
            bench.resize(24 if index % 8 == 7 else 9, preempt=True)
    bench.resize(24, preempt=False)
    bench.run()
    assert bench.scheduler.counts.preemptions > 0
    for request in requests:
        expected = [] if request.prompt_logprobs is None else truth(request.token_ids)
        assert scores(bench, request.id) == expected, request.id


@pytest.mark.parametrize("hybrid", [False, True])
def test_an_engine_that_takes_over_scores_the_rest(hybrid: bool) -> None:
    """What another engine has scored must not be sent again, and its cached part need not be computed."""
    for num_scored in range(1, len(PROMPT) + 1):
        bench = bench_of(hybrid)
        bench.add(ask("before", PROMPT, 2))
        bench.run()
        request = ask("a", PROMPT, 2, ignore_eos=True, prompt_logprobs=0)
        bench.add(msgspec.structs.replace(request, num_scored=num_scored))
        bench.run()
        assert scores(bench, "a") == truth(PROMPT, num_scored)
        assert (bench.cached("a") or 0) <= max(0, num_scored - 1)
