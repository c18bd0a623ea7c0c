"""Medians of several rounds; a round that failed must not hide the others."""

from benchmarks.peers import medians


def test_a_figure_is_the_median_of_the_rounds_that_have_it() -> None:
    rounds = [{"start_s": 9.0, "gap_ms": 5.0}, {"start_s": 1.0}, {"start_s": 2.0, "gap_ms": 7.0}]
    assert medians(rounds) == {"start_s": 2.0, "gap_ms": 6.0}
    assert medians([{"start_s": 4.0}]) == {"start_s": 4.0}
