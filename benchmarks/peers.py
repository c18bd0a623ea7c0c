"""Comparison with other servers on this machine: the same workloads, one results file, one table with ratios.

    python -m benchmarks.peers [--servers toolwire,toolwire-int4,vllm,...] [--checkpoints 0.6B,tiny,hybrid,built-in]

Makes missing checkpoints, starts one server at a time, runs the workloads of `benchmarks/measure.py` and writes
`benchmarks/results/NAME-KIND.json`, a file for each kind of CPU. Servers that are not installed are skipped;
`benchmarks/servers.py` says how to install them. `python -m benchmarks.table FILE` updates `docs/performance.md`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.checkpoint import make_checkpoint
from benchmarks.llamacpp import make_gguf
from benchmarks.measure import PLANS, Figures, Plan, measure
from benchmarks.servers import KINDS, find_program, started
from benchmarks.table import markdown, ratios
from server.model.cpu.library import available_isas

HERE = Path(__file__).parent


def machine() -> dict[str, str]:
    """Return CPU, its kind (the best instruction set of our kernels), Python version and commit, for a results file."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    cpu = f"{len(names)} x {names[0]}" if names else platform.processor()
    kind = next(iter(available_isas()), "torch")
    return {"cpu": cpu, "kind": kind, "python": platform.python_version(), "commit": commit.stdout.strip()}


def find_checkpoint(name: str, folder: Path) -> Path:
    """Return the checkpoint of this name, and make it if it is missing."""
    if name == "built-in":
        return HERE.parent / "server" / "demo_model"
    return make_checkpoint(name, folder / name).absolute()


def measure_server(name: str, model: Path, plan: Plan, options: argparse.Namespace) -> Figures:
    """Return the figures of one server with a folder or a GGUF file, none if it is not installed or does not start."""
    program = find_program(name, options.peers_dir)
    if program is None:
        print(f"{name}: skipped, not installed", file=sys.stderr)
        return {}
    weights = KINDS[name].weights
    if weights and model.is_dir():
        make_gguf(model, weights, options.peers_dir)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / f"{name}.log"
        try:
            with started(name, program, model, log) as server:
                return uvloop.run(measure(server, plan, options.repeat))
        except RuntimeError as error:
            print(f"{name}: {error}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
            return {}


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the rounds that have it."""
    figures = dict.fromkeys(figure for row in rounds for figure in row)
    return {figure: statistics.median(row[figure] for row in rounds if figure in row) for figure in figures}


def main() -> None:
    """Measure, print the tables, write the results file after each server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default=",".join(KINDS))
    parser.add_argument("--checkpoints", default=",".join(PLANS))
    parser.add_argument("--peers-dir", type=Path, default=Path(".cache/peers"))
    parser.add_argument("--checkpoints-dir", type=Path, default=Path(".cache/checkpoints"))
    parser.add_argument("--workloads", default="", help="names of functions in measure.py, and streams; all if empty")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="times that all servers run in turn: machines drift")
    parser.add_argument("--name", default="peers")
    options = parser.parse_args()
    figures: dict[str, dict[str, Figures]] = {}
    here = machine()
    result = {
        "command": f"python -m benchmarks.peers --servers {options.servers} --checkpoints {options.checkpoints} "
        + (f"--workloads {options.workloads} " if options.workloads else "")
        + f"--repeat {options.repeat} "
        + (f"--rounds {options.rounds} " if options.rounds > 1 else "")
        + f"--name {options.name}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": here,
        "figures": figures,
    }
    for shape in options.checkpoints.split(","):
        checkpoint = find_checkpoint(shape, options.checkpoints_dir)
        plan = PLANS[shape].only(options.workloads.split(",")) if options.workloads else PLANS[shape]
        rows = figures.setdefault(shape, {})
        rounds: dict[str, list[Figures]] = {}
        for name in options.servers.split(",") * options.rounds:
            if row := measure_server(name, checkpoint, plan, options):
                rounds.setdefault(name, []).append(row)
                rows[name] = medians(rounds[name])
            content = {**result, "ratios": {key: ratios(value) for key, value in figures.items()}}
            (HERE / "results" / f"{options.name}-{here['kind']}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{shape}\n{markdown(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
