"""The GPU's benchmark runs on a CPU too: half an hour of a lent card is no time to find a typing slip."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import main
from benchmarks.gpu_peers import main as measure_transformers


def test_the_gpu_benchmark_runs_with_a_tiny_shape(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = "--device cpu --shapes tiny --batches 1 3 --steps 2 --prompt-tokens 20 --no-peers --out"
    report = main([*options.split(), str(out)])
    written = json.loads(out.read_text())
    assert {**written, "seconds": 0} == {**report, "seconds": 0}
    assert [(figure["way"], figure["batch"]) for figure in report["figures"]] == [
        ("gather", 1), ("gather", 3), ("gather overlap", 1), ("gather overlap", 3),
    ]  # fmt: skip
    assert all(figure["fault"] is None and figure["tok_per_s"] for figure in report["figures"])
    first = report["first_token"]["tiny"]
    assert first["times_limit"] == first["first_s"] / first["limit_s"]
    memory = report["memory"]["tiny"]
    assert 0 < memory["weights"]["estimated"] <= memory["weights"]["measured"]  # the head is packed beside its twin
    assert memory["pool"]["estimated"] == memory["pool"]["measured"]


def test_transformers_is_measured_for_the_same_task(capsys: pytest.CaptureFixture[str]) -> None:
    measure_transformers(["--device", "cpu", "--shape", "tiny", "--prompt-tokens", "20", "--steps", "2", "generate:3"])
    ready, line = capsys.readouterr().out.splitlines()
    figure = json.loads(line)
    assert ready == "ready" and (figure["way"], figure["batch"], figure["fault"]) == ("generate", 3, None)


def test_what_finds_no_time_is_recorded_as_such(tmp_path: Path) -> None:
    out = str(tmp_path / "gpu.json")
    options = "--device cpu --shapes tiny --batches 1 --no-peers --limit-s -1 --out"
    report = main([*options.split(), out])
    assert [figure["fault"] for figure in report["figures"]] == ["no time left"] * 2
