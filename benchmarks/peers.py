"""Each installed server in turn on this machine, the same workloads, one table with ratios.

python -m benchmarks.peers CHECKPOINT [--servers toolwire,vllm,transformers] [--peers-dir .cache/peers] [--repeat 3]

CHECKPOINT is a folder made by `python -m benchmarks.checkpoint`, or `server/demo_model`. Writes one JSON file below
`benchmarks/results/`. Ratios are toolwire's figure against the best peer's, so that above 1 is better.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.load import summarise, words
from benchmarks.servers import KINDS, Running, find_python, started
from benchmarks.workloads import chat, forced_call, is_valid, run_agents, run_chats

RESULTS = Path(__file__).parent / "results"
LOWER_IS_BETTER = ("_s", "_ms", "_mib")
Figures = dict[str, float]


async def measure(server: Running, repeat: int, streams: tuple[int, ...]) -> Figures:
    """Every workload on one running server; medians of `repeat` runs."""
    figures: Figures = {"start_s": server.start_s}
    await run_chats(server.url, [chat(server.model, 50, 16, 999)], 1)  # warm
    steps: list[Callable[[Running, int], Coroutine[Any, Any, Figures]]] = [_decode, _first_token, _forced]
    for step in steps:
        runs = [await step(server, number) for number in range(repeat)]
        figures |= {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    for count in streams:
        done, wall_s = await run_chats(
            server.url, [chat(server.model, 100, 128, 5000 + count * 100 + i) for i in range(count * 2)], count
        )
        summary = summarise(done, wall_s, count)
        figures[f"streams_{count}_tok_per_s"] = summary.throughput_per_s
        figures[f"streams_{count}_gap_p99_ms"] = summary.gap_p99_ms
    for forced in (True, False):
        figures |= await _agents(server, forced)
    figures["memory_mib"] = server.memory_mib()
    return figures


async def _decode(server: Running, number: int) -> Figures:
    figures: Figures = {}
    for size in (100, 1500):
        done, wall_s = await run_chats(server.url, [chat(server.model, size, 128, 10 * size + number)], 1)
        summary = summarise(done, wall_s, 1)
        figures[f"decode_after_{size}_words_tok_per_s"] = summary.decode_per_s
        figures[f"decode_after_{size}_words_gap_p50_ms"] = summary.gap_p50_ms
        figures[f"decode_after_{size}_words_gap_p99_ms"] = summary.gap_p99_ms
    return figures


async def _first_token(server: Running, number: int) -> Figures:
    head = words(1450, 77 + number) + f" [{number}] "
    cold, _ = await run_chats(server.url, [chat(server.model, 80, 8, 300 + number, head)], 1)
    warm, _ = await run_chats(server.url, [chat(server.model, 80, 8, 400 + number, head)], 1)
    return {"first_token_cold_s": cold[0].first_token_s, "first_token_known_head_s": warm[0].first_token_s}


async def _forced(server: Running, number: int) -> Figures:
    done = await forced_call(server.url, server.model, number)
    if not is_valid(done.text):
        return {"forced_call_s": float("inf")}  # only finished, valid calls count
    return {"forced_call_s": done.total_s}


async def _agents(server: Running, forced: bool) -> Figures:
    name = "forced" if forced else "auto"
    try:
        runs, wall_s = await run_agents(server.url, server.model, agents=4, forced=forced)
    except RuntimeError as error:
        print(f"  agent loop ({name}) failed: {error}", file=sys.stderr)
        return {}
    return {
        f"agents_{name}_round_s": statistics.median(s for run in runs for s in run.round_s),
        f"agents_{name}_first_argument_s": statistics.median(s for run in runs for s in run.first_argument_s),
        f"agents_{name}_valid_share": sum(run.valid for run in runs) / sum(len(run.round_s) for run in runs),
        f"agents_{name}_cached_share": sum(run.cached_tokens for run in runs) / sum(run.prompt_tokens for run in runs),
        f"agents_{name}_tok_per_s": sum(run.completion_tokens for run in runs) / wall_s,
    }


def ratios(table: dict[str, Figures]) -> Figures:
    """toolwire against the best peer, per figure; above 1 is better."""
    found: Figures = {}
    for figure, own in table.get("toolwire", {}).items():
        peers = [row[figure] for name, row in table.items() if name != "toolwire" and figure in row]
        if not peers or not own:
            continue
        lower = figure.endswith(LOWER_IS_BETTER) and not figure.endswith("tok_per_s")
        found[figure] = min(peers) / own if lower else own / max(max(peers), 1e-9)
    return found


def show(table: dict[str, Figures]) -> str:
    """The table as Markdown."""
    names, ratio = list(table), ratios(table)
    figures = dict.fromkeys(figure for row in table.values() for figure in row)
    lines = ["| figure | " + " | ".join(names) + " | toolwire / best peer |", "|---" * (len(names) + 2) + "|"]
    for figure in figures:
        cells = [f"{table[name][figure]:.3g}" if figure in table[name] else "-" for name in names]
        lines.append(f"| {figure} | " + " | ".join(cells) + f" | {ratio[figure]:.2f} |" if figure in ratio else
                     f"| {figure} | " + " | ".join(cells) + " | - |")  # fmt: skip
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    cpu = f"{len(names)} x {names[0]}" if names else platform.processor()
    return {"cpu": cpu, "python": platform.python_version(), "commit": commit.stdout.strip()}


def main() -> None:
    """Measure, print the table, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--servers", default=",".join(KINDS))
    parser.add_argument("--peers-dir", type=Path, default=Path(".cache/peers"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--streams", default="8,16")
    parser.add_argument("--name", default="peers")
    options = parser.parse_args()
    table: dict[str, Figures] = {}
    for name in options.servers.split(","):
        python = find_python(name, options.peers_dir)
        needs = KINDS[name].needs
        if python is None or (needs and not (options.checkpoint / needs).exists()):
            print(f"{name}: skipped, {'no ' + needs if python else 'not installed'}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / f"{name}.log"
            try:
                with started(name, python, options.checkpoint.absolute(), log) as server:
                    streams = tuple(int(count) for count in options.streams.split(","))
                    table[name] = asyncio.run(measure(server, options.repeat, streams))
            except RuntimeError as error:
                print(f"{name}: {error}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
    result = {
        "command": "python -m benchmarks.peers " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "figures": table,
        "ratios": ratios(table),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(show(table))


if __name__ == "__main__":
    main()
