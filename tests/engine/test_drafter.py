"""Prompt lookup: what is copied, and when it gives up."""

from server.engine.drafter import FIRST_PAUSE, TRIAL, Drafter


def test_what_followed_the_last_ids_before_is_drafted() -> None:
    assert list(Drafter(4).draft([1, 2, 3, 9, 8, 7, 1, 2, 3])) == [9, 8, 7, 1]


def test_latest_occurrence_wins() -> None:
    assert list(Drafter(1).draft([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3])) == [5]


def test_new_words_are_not_guessed() -> None:
    drafter = Drafter(4)
    assert list(drafter.draft([1, 2])) == []
    assert list(drafter.draft([1, 2, 3, 4, 5, 6])) == []


def test_each_id_is_indexed_once() -> None:
    ids = [1, 2, 3, 9, 8, 7, 1, 2, 3]
    drafter = Drafter(4)
    drafter.draft(ids)
    ids += [9]
    assert list(drafter.draft(ids)) == [8, 7, 1, 2]


def test_drafter_pauses_where_nothing_is_accepted_and_tries_again() -> None:
    drafter, ids = Drafter(4), [1, 2, 3] * 10
    assert list(drafter.draft(ids))
    drafter.learn(TRIAL, 0, len(ids))
    assert list(drafter.draft(ids)) == []
    ids += [1, 2, 3] * FIRST_PAUSE
    assert list(drafter.draft(ids))


def test_drafter_goes_on_where_it_pays() -> None:
    drafter, ids = Drafter(4), [1, 2, 3] * 10
    drafter.learn(TRIAL, TRIAL // 2, len(ids))
    assert list(drafter.draft(ids))
