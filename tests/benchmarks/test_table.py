"""Ratios and tables of the comparison with other servers; an inverted ratio would claim the opposite."""

from benchmarks.table import markdown, ratios

ROWS = {
    "toolwire": {"decode_tok_per_s": 30.0, "start_s": 4.0, "gap_p99_ms": 50.0, "memory_mib": 900.0, "alone_s": 1.0},
    "one": {"decode_tok_per_s": 20.0, "start_s": 100.0, "gap_p99_ms": 40.0, "memory_mib": 9000.0},
    "two": {"decode_tok_per_s": 15.0, "start_s": 8.0},
}


def test_a_ratio_above_one_is_better_for_every_unit() -> None:
    found = ratios(ROWS)
    assert found == {"decode_tok_per_s": 1.5, "start_s": 2.0, "gap_p99_ms": 0.8, "memory_mib": 10.0}


def test_toolwire_is_compared_with_the_best_peer_and_missing_figures_are_dashes() -> None:
    lines = markdown(ROWS).splitlines()
    assert lines[2] == "| decode_tok_per_s | 30 | 20 | 15 | 1.50 |"
    assert lines[-1] == "| alone_s | 1 | - | - | - |"
