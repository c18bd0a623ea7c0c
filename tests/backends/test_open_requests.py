"""The order in which a restarted engine gets its requests, and which of them it died of."""

from server.backends.open_requests import MAX_DEATHS, OpenRequest, OpenRequests
from server.errors import RequestFailed
from server.messages import Delta, Generate, Sampling, StageTime, TokenLogprob


def opened(requests: OpenRequests, *names: str) -> list[OpenRequest]:
    return [requests.open(Generate(name, [1], Sampling(max_tokens=100))) for name in names]


def due(requests: OpenRequests) -> list[str]:
    return [one.request.id for one in requests.due()]


def write(one: OpenRequest, *token_ids: int) -> None:
    one.deliver(Delta(one.request.id, list(token_ids)))


def test_those_that_were_computed_go_on_one_at_a_time_and_new_ones_wait() -> None:
    """Sent together again, a second death would not tell which of them the engine dies of."""
    requests = OpenRequests()
    first, _, second = opened(requests, "first", "waiting", "second")
    assert due(requests) == ["first", "waiting", "second"]
    write(first, 5)
    write(second)
    assert requests.engine_died() == 3
    opened(requests, "new")
    assert due(requests) == ["first"]
    assert first.message().reply_ids == [5]
    write(first)
    write(first, 6)
    assert due(requests) == []
    write(first, 7)
    assert due(requests) == ["second"]
    write(second, 1)
    write(second, 2)
    assert due(requests) == ["waiting", "new"]


def test_the_one_on_trial_fails_and_all_others_go_on() -> None:
    requests = OpenRequests()
    beside, deadly = opened(requests, "beside", "deadly")
    for _ in range(2):
        due(requests)
        for one in (beside, deadly):
            if one.is_sent:
                write(one)
        for token_id in (1, 2):
            write(beside, token_id)
            if due(requests):
                write(deadly)
        requests.engine_died()
    assert isinstance(deadly.inbox.get_nowait(), Delta)
    error = deadly.inbox.get_nowait()
    while isinstance(error, Delta):
        error = deadly.inbox.get_nowait()
    assert isinstance(error, RequestFailed) and not beside.is_over
    assert beside.reply_ids == [1, 2, 1, 2]
    requests.close(deadly)
    assert due(requests) == ["beside"]


def test_a_request_that_kills_engines_before_it_is_computed_does_not_kill_them_for_ever() -> None:
    requests = OpenRequests()
    (deadly,) = opened(requests, "deadly")
    for _ in range(MAX_DEATHS):
        assert due(requests) == ["deadly"]
        requests.engine_died()
    assert isinstance(deadly.inbox.get_nowait(), RequestFailed)
    assert due(requests) == []


def test_one_that_is_over_or_left_is_neither_sent_again_nor_waited_for() -> None:
    requests = OpenRequests()
    ended, left, last = opened(requests, "ended", "left", "last")
    due(requests)
    for one in (ended, left, last):
        write(one, 4)
    ended.deliver(Delta("ended", [5], finish="stop"))
    assert requests.engine_died() == 2
    assert due(requests) == ["left"]
    requests.close(left)
    assert due(requests) == ["last"]


def test_to_the_reader_another_engine_is_a_preemption() -> None:
    """A second admission would count cached tokens twice, and put the spans of a trace in disorder."""
    requests = OpenRequests()
    (one,) = opened(requests, "one")
    due(requests)
    one.deliver(Delta("one", cached=3, stage_times=(StageTime("arrived", 1.0), StageTime("admitted", 2.0))))
    requests.engine_died()
    due(requests)
    one.deliver(Delta("one", cached=9, stage_times=(StageTime("arrived", 5.0), StageTime("admitted", 6.0))))
    first, again = one.inbox.get_nowait(), one.inbox.get_nowait()
    assert isinstance(first, Delta) and isinstance(again, Delta)
    assert (first.cached, again.cached) == (3, None)
    assert [time.stage for time in again.stage_times] == ["preempted", "resumed"]
    assert again.stage_times[1].time_s == 6.0


def test_logprobs_of_a_prompt_are_not_sent_twice() -> None:
    """An engine that takes over would score the whole prompt again, and its client would get parts of it twice."""
    requests = OpenRequests()
    one = requests.open(Generate("a", [1, 2, 3, 4, 5], Sampling(max_tokens=1), prompt_logprobs=0))
    assert due(requests) == ["a"]
    one.deliver(Delta("a", cached=0))
    one.deliver(Delta("a", prompt_logprobs=[TokenLogprob(2, -1.0), TokenLogprob(3, -1.0)]))
    requests.engine_died()
    assert one.message().num_scored == 3
