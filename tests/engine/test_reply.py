"""State of a sequence's output: what may be written next, and when the reply is over."""

import pytest

from server.engine.reply import OutputState, closing_constraint
from server.errors import ConstraintFailed
from server.messages import Generate, ReasoningPhase
from tests.engine.toys import STOP, ToyMatcher, ask

END, OPEN = 6, 5


def start(request: Generate, pattern: str | None = None, closer: str | None = None) -> OutputState:
    reply = OutputState(request, fast_forward=True)
    reply.begin(None if pattern is None else ToyMatcher(pattern), None if closer is None else ToyMatcher(closer))
    return reply


def test_constraint_begins_behind_the_preamble() -> None:
    reply = start(ask("a", [1], reasoning_phase=ReasoningPhase(END)), "4 ? 4")
    assert reply.active_matcher is None
    reply.write([1, 2, 3])
    assert reply.write_forced() == 0
    reply.write([END])
    assert reply.write_forced() == 1
    reply.write([2])
    reply.write_forced()
    assert reply.written_ids == [1, 2, 3, END, 4, 2, 4]
    assert reply.finish == "stop"


def test_constraint_holds_from_the_first_id_where_no_preamble_is_opened() -> None:
    reply = start(ask("a", [1], reasoning_phase=ReasoningPhase(END, open_id=OPEN)), "4 4 ?")
    assert reply.extra_id == OPEN
    assert reply.active_matcher is not None
    assert reply.write_forced() == 0, "the opening id is another choice"
    reply.write([4])
    assert reply.extra_id is None
    assert reply.write_forced() == 1


def test_constraint_holds_from_an_id_that_breaks_the_preamble_off() -> None:
    """A call begun inside a think block was returned without its arguments being held to the schema."""
    reply = start(ask("a", [1], reasoning_phase=ReasoningPhase(END, break_ids=(4,))), "4 3 ?")
    reply.write([1, 2])
    assert reply.active_matcher is None
    assert reply.cut_drafts([1, 4, 2]) == [1]
    reply.write([4])
    assert reply.write_forced() == 1
    assert reply.written_ids == [1, 2, 4, 3]


def test_opened_preamble_does_not_move_the_matcher() -> None:
    reply = start(ask("a", [1], reasoning_phase=ReasoningPhase(END, open_id=OPEN)), "4 4 ?")
    reply.write([OPEN, 1, 1])
    assert reply.active_matcher is None
    reply.write([END])
    assert isinstance(reply.active_matcher, ToyMatcher)
    assert reply.active_matcher.place == 0


def test_preamble_is_closed_at_its_limit_with_ids_that_are_not_sampled() -> None:
    reply = start(
        ask("a", [1], max_tokens=20, reasoning_phase=ReasoningPhase(END, limit=2, close_ids=(3, 3, END))), "4 ?"
    )
    reply.write([1])
    assert reply.write_forced() == 0
    reply.write([1])
    assert reply.write_forced() == 4
    assert reply.written_ids == [1, 1, 3, 3, END, 4]
    assert reply.num_forced == 4


def test_limit_of_none_inside_closes_at_once() -> None:
    reply = start(ask("a", [1], reasoning_phase=ReasoningPhase(END, limit=0)))
    reply.write_forced()
    assert reply.written_ids == [END]
    assert reply.finish is None


def test_close_ids_are_sampled_under_a_mask_where_logprobs_are_wanted() -> None:
    request = ask(
        "a", [1], max_tokens=20, num_logprobs=2, reasoning_phase=ReasoningPhase(END, limit=1, close_ids=(3, END))
    )
    closing = closing_constraint(request)
    assert closing is not None
    assert closing.source == f"start: <[3]> <[{END}]>"
    reply = start(request, "4 ?", closing.source)
    reply.write([1])
    assert reply.write_forced() == 0
    assert isinstance(reply.active_matcher, ToyMatcher)
    assert reply.active_matcher.allowed_at(0) == (3,)
    reply.write([3])
    reply.write([END])
    assert isinstance(reply.active_matcher, ToyMatcher)
    assert reply.active_matcher.pattern == ["4", "?"]


def test_stop_id_inside_the_preamble_is_banned_only_if_a_constraint_is_unmet() -> None:
    assert start(ask("a", [1], reasoning_phase=ReasoningPhase(END)), "4").banned_ids == (STOP,)
    free = start(ask("a", [1], reasoning_phase=ReasoningPhase(END)))
    assert free.banned_ids == ()
    free.write([1, STOP, 2])
    assert (free.written_ids, free.finish) == ([1, STOP], "stop")


def test_min_tokens_and_ignore_eos_ban_stop_ids() -> None:
    reply = start(ask("a", [1], min_tokens=2))
    assert reply.banned_ids == (STOP,)
    reply.write([1, 1])
    assert not reply.banned_ids
    assert start(ask("a", [1], ignore_eos=True)).banned_ids == (STOP,)


def test_drafts_are_cut_where_other_rules_begin() -> None:
    assert list(start(ask("a", [1], max_tokens=3)).cut_drafts([1, 1, 1, 1])) == [1, 1]
    assert list(start(ask("a", [1], max_tokens=9, min_tokens=2)).cut_drafts([1, 1, 1])) == [1]
    assert list(start(ask("a", [1], reasoning_phase=ReasoningPhase(END))).cut_drafts([1, END, 1])) == [1]
    assert list(start(ask("a", [1], reasoning_phase=ReasoningPhase(END, limit=2))).cut_drafts([1, 1, 1])) == [1]
    assert list(start(ask("a", [1], reasoning_phase=ReasoningPhase(END, open_id=OPEN))).cut_drafts([1, 1])) == []
    assert list(start(ask("a", [1]), "? ? 4 ?").cut_drafts([1, 2, 3])) == [1, 2]


def test_id_that_the_constraint_forbids_is_a_fault_not_a_reply() -> None:
    reply = start(ask("a", [1]), "4 4")
    reply.write([5])
    assert reply.fault is not None
    assert reply.is_over


def test_grammar_that_becomes_too_complex_is_the_fault_of_one_request() -> None:
    class Tired(ToyMatcher):
        def advance(self, token_ids: object) -> bool:
            raise ConstraintFailed("the grammar is too complex")

    reply = OutputState(ask("a", [1]), fast_forward=True)
    reply.begin(Tired("? ?"), None)
    reply.write([1])
    assert (reply.fault, reply.fault_kind) == ("the grammar is too complex", "bad_constraint")


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_reply_ends_at_max_tokens_unless_it_was_complete(max_tokens: int) -> None:
    reply = start(ask("a", [1], max_tokens=max_tokens), "4 4")
    reply.write_forced()
    assert reply.finish == ("length" if max_tokens == 1 else "stop")


@pytest.mark.parametrize("name", ["advance", "forced", "is_over", "count_allowed"])
def test_a_matcher_that_breaks_ends_its_own_reply(name: str) -> None:
    """An exception there used to end the engine, and every reply with it."""

    def broken(*_: object) -> None:
        raise RuntimeError("not foreseen")

    reply = start(ask("a", [1]), "? ? ?")
    assert reply.matcher is not None
    setattr(reply.matcher, name, broken)
    reply.cut_drafts([1, 2])
    reply.write([1])
    reply.write_forced()
    assert reply.fault == "its constraint broke: RuntimeError: not foreseen"
    assert reply.is_over


def test_forced_ids_of_a_traced_reply_are_marked_whether_they_are_appended_or_sampled() -> None:
    """With logprobs forced ids are sampled one by one, and none of them was seen to be forced."""
    appended = start(ask("a", [1], trace=True), "4 4 ? 4")
    appended.write_forced()
    appended.write([2])
    appended.write_forced()
    sampled = start(ask("a", [1], trace=True, num_logprobs=0), "4 4 ? 4")
    sampled.write([4, 4, 2, 4])
    assert appended.written_ids == sampled.written_ids == [4, 4, 2, 4]
    assert appended.forced_places == sampled.forced_places == [0, 1, 3]


def test_ids_that_close_the_reasoning_phase_at_its_limit_are_forced() -> None:
    reply = start(ask("a", [1], trace=True, reasoning_phase=ReasoningPhase(END, limit=2, close_ids=(3, END))))
    reply.write([1, 2])
    reply.write_forced()
    reply.write([1])
    assert reply.written_ids == [1, 2, 3, END, 1] and reply.forced_places == [2, 3]
    assert start(ask("a", [1])).forced_places == []
