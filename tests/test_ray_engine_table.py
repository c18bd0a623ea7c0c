"""The table of engines of the Ray Serve application, without Ray: who is listed to whom, and with which key."""

import pytest

from deploy.ray import engine_table
from deploy.ray.engine_table import LEASE_S, READER_S, SILENCE_S, EngineTable

ONE, TWO = "http://one:1", "http://two:1"


class Clock:
    """The time of a table, which passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(engine_table, "time", made)
    return made


def test_the_first_proposal_is_the_key_where_no_engine_has_one(clock: Clock) -> None:
    table = EngineTable()
    assert table.key("a") == ""
    clock.now_s += SILENCE_S
    assert table.key("a") == table.key("b") == "a"


def test_a_table_that_is_started_afresh_takes_the_key_of_the_engines_that_live(clock: Clock) -> None:
    """The first replica that asked got a key of its own, and reached none of the engines ever after."""
    table = EngineTable()
    assert table.key("new") == ""
    table.report(ONE, "old")
    clock.now_s += SILENCE_S
    assert table.key("new") == "old" and table.engines("api", "old") == [ONE]


def test_a_table_that_is_started_afresh_takes_the_key_of_the_api_replicas_that_live(clock: Clock) -> None:
    """Where the table and all engines were lost together, API replicas kept a key that no engine had any more."""
    table = EngineTable()
    assert table.engines("api", "old") == []
    clock.now_s += SILENCE_S
    assert table.engines("api", "old") == [] and table.key("new") == "old"


def test_the_key_is_that_of_later_engines_once_none_has_the_first(clock: Clock) -> None:
    """The first key that was told stayed for ever."""
    table = EngineTable()
    table.report(ONE, "first")
    table.report(TWO, "second")
    assert table.key("") == "first"
    table.withdraw(ONE)
    table.report(TWO, "second")
    assert table.key("") == "second"
    clock.now_s += LEASE_S
    table.report(ONE, "third")
    assert table.key("") == "third" and table.engines("api", "second") == []


def test_replicas_are_told_of_the_engines_that_have_their_key(clock: Clock) -> None:
    """An engine with another key refused every connection of the replicas that were told of it."""
    table = EngineTable()
    table.report(ONE, "first")
    table.report(TWO, "second")
    assert not table.engines("old", "none")
    assert table.engines("old", "first") == [ONE]
    assert table.is_known(ONE) and table.is_known(TWO)  # no replica with the second key lives
    assert table.engines("new", "second") == [TWO]
    table.report("http://three:1", "second")
    assert not table.is_known("http://three:1")
    clock.now_s += READER_S
    assert table.is_known("http://three:1")


def test_engines_that_fall_silent_are_listed_no_longer(clock: Clock) -> None:
    table = EngineTable()
    table.report(ONE, "first")
    clock.now_s += LEASE_S - 1
    assert table.engines("api", "first") == [ONE]
    clock.now_s += 1
    assert table.engines("api", "first") == []
