"""The GPU's benchmark runs on a CPU too: half an hour of a lent card is no time to find a typing slip."""

import json
from pathlib import Path

from benchmarks.gpu import main


def test_the_gpu_benchmark_runs_with_a_tiny_shape(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = "--device cpu --shapes tiny --batches 1 3 --steps 2 --prompt-tokens 20 --out"
    report = main([*options.split(), str(out)])
    assert json.loads(out.read_text()) == report
    assert [(figure["way"], figure["batch"]) for figure in report["figures"]] == [
        ("gather", 1), ("gather", 3), ("gather overlap", 1), ("gather overlap", 3), ("generate", 1), ("generate", 3),
    ]  # fmt: skip
    assert all(figure["fault"] is None and figure["tok_per_s"] for figure in report["figures"])
    memory = report["memory"]["tiny"]
    assert 0 < memory["weights"]["estimated"] <= memory["weights"]["measured"]  # the head is packed beside its twin
    assert memory["pool"]["estimated"] == memory["pool"]["measured"]


def test_what_finds_no_time_is_recorded_as_such(tmp_path: Path) -> None:
    out = str(tmp_path / "gpu.json")
    options = "--device cpu --shapes tiny --batches 1 --no-peers --limit-s -1 --out"
    report = main([*options.split(), out])
    assert [figure["fault"] for figure in report["figures"]] == ["no time left"] * 2
