"""The common yardstick must be the one that others publish, and run before a card is lent."""

from pathlib import Path

from benchmarks.gpu_throughput import main, published_workload


def test_the_workload_is_that_of_nano_vllm() -> None:
    """Its README counts 133,966 tokens of output."""
    work = published_workload(256, 100, 1024)
    assert (sum(map(len, work.prompts)), sum(work.reply_tokens)) == (142_827, 133_966)


def test_every_reply_is_written_to_its_length(tmp_path: Path) -> None:
    out = str(tmp_path / "gpu.json")
    options = "--device cpu --shape tiny --sequences 3 --shortest 2 --longest 5 --max-batch-tokens 64 --out"
    report = main([*options.split(), out])
    assert [run["temperature"] for run in report["runs"]] == [0.6, 0.0]
    work = published_workload(3, 2, 5)
    assert all(run["output_tokens"] == sum(work.reply_tokens) for run in report["runs"])
