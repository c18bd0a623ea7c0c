"""The verdict on a server under load: a run that lost a stream, or in which nothing happened, must not pass."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.gpu_guard import Run, judge, summary

CALM = {"time_s": 0.0, "allowed": 64.0, "total": 64.0, "used": 3.0, "tokens": 0.0, "preemptions": 0.0, "restarts": 0.0}
OPTIONS = argparse.Namespace(device="cuda", shape="tiny", streams=2, server_option=[])


def _run(folder: Path, ends: list[str], **last: float) -> Run:
    run = Run(folder)
    run.samples = [CALM, {**CALM, "time_s": 4.0, "allowed": 20.0, "tokens": 40.0}, {**CALM, "time_s": 8.0, **last}]
    run.ended = [{"began_s": 1.0, "first_s": 0.1, "seconds": 1.0, "completion_tokens": 5, "end": end} for end in ends]
    judge(run, OPTIONS)
    return run


def test_complete_and_shed_requests_pass_and_every_other_end_does_not(tmp_path: Path) -> None:
    assert _run(tmp_path, ["complete", "shed 503", "shed 429"]).faults == []
    assert _run(tmp_path, ["complete", "error event: no_memory"]).faults == ["1 requests: error event: no_memory"]
    assert _run(tmp_path, ["shed 503"]).faults == ["no request was completed"]


def test_an_engine_that_started_again_or_kept_too_little_does_not_pass(tmp_path: Path) -> None:
    assert _run(tmp_path, ["complete"], restarts=1.0).faults == ["the engine was started again 1 times"]
    assert _run(tmp_path, ["complete"], allowed=60.0).faults == ["60.0 of 64.0 blocks are allowed at the end"]


def test_a_guard_that_never_acted_does_not_pass(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.samples, run.ended = [CALM, CALM], [{"end": "complete"}]
    judge(run, OPTIONS)
    assert run.faults == ["the guard never acted: take more memory"]


def test_speed_is_told_apart_by_phase(tmp_path: Path) -> None:
    run = _run(tmp_path, ["complete"], tokens=240.0)
    run.squeezes = [{"event": "begin", "time_s": 0.0}, {"event": "end", "time_s": 4.0}]
    phases: list[dict[str, Any]] = summary(run, OPTIONS)["phases"]
    assert [(one["phase"], one["tok_per_s"]) for one in phases] == [("squeezed", 10.0), ("quiet", 50.0)]
    assert phases[0]["first_token_p50_s"] == 0.1 and phases[0]["fewest_allowed"] == 20.0
