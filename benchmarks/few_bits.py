"""Comparison of weights of few bits with llama.cpp's server: one stream, a prompt of 2000 tokens, 8 and 16 streams.

    python -m benchmarks.llamacpp PEERS_DIR      once, ten minutes
    python -m benchmarks.few_bits --peers-dir PEERS_DIR [--checkpoints 0.6B,smollm2] [--rounds 1]

Of the shape 0.6B, with random weights: `--quantize int8` and `int4` beside llama.cpp's Q8_0 and Q4_K_M, and both beside
bfloat16. Of SmolLM2-135M-Instruct: its GGUF file in both. No server drafts. All servers run in turn, a round after the
other, and the medians of the rounds count; one round takes about ten minutes on two idle cores. Writes
`benchmarks/results/few-bits-KIND.json`, KIND being that of the CPU, and prints the figures and their ratios.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Figures, Plan, decode_at_128, first_token
from benchmarks.peers import HERE, find_checkpoint, machine, measure_server, medians
from benchmarks.table import is_lower_better, markdown
from server.checkpoint.shipped import find_base

PLAIN, INT8, INT4 = "toolwire-undrafted", "toolwire-int8-undrafted", "toolwire-int4-undrafted"
Q8, Q4, GGUF = "llamacpp-Q8_0", "llamacpp-Q4_K_M", "llamacpp"
AVX2, AVX2_GGUF = "toolwire-avx2-undrafted", "llamacpp-avx2"  # no default; both in bfloat16
SERVERS = {"smollm2": (PLAIN, GGUF)}
SERVERS_OF_A_SHAPE = (PLAIN, INT8, INT4, Q8, Q4)
PLAN = Plan((decode_at_128, first_token), (), (8, 16), 1)
ONE, FIRST, EIGHT, SIXTEEN = (
    "decode_at_128_tok_per_s", "first_token_2000_cold_s", "streams_8_tok_per_s", "streams_16_tok_per_s",
)  # fmt: skip
# A figure, ours, theirs, how many times as fast ours is to be.
BARS = (
    (ONE, INT8, Q8, 1.2), (ONE, INT4, Q4, 1.2), (ONE, INT8, PLAIN, 1.6), (ONE, INT4, PLAIN, 2.4),
    (FIRST, INT4, PLAIN, 0.8), (FIRST, INT4, Q8, 3.0), (FIRST, INT4, Q4, 3.0),
    (EIGHT, INT4, PLAIN, 1.0), (EIGHT, INT4, Q4, 2.0), (SIXTEEN, INT4, PLAIN, 1.0), (SIXTEEN, INT4, Q4, 2.0),
    (ONE, AVX2, AVX2_GGUF, 1.0), (FIRST, AVX2, AVX2_GGUF, 1.0),
    (ONE, PLAIN, GGUF, 1.0), (FIRST, PLAIN, GGUF, 1.0), (EIGHT, PLAIN, GGUF, 1.0), (SIXTEEN, PLAIN, GGUF, 1.0),
)  # fmt: skip


def find_model(name: str, folder: Path) -> Path:
    """Return SmolLM2's file, or the checkpoint of this shape, which is made if it is missing."""
    if name != "smollm2":
        return find_checkpoint(name, folder)
    file = find_base()
    if file is None:
        sys.exit("SmolLM2-135M-Instruct is not here: `toolwire fetch` gets it (98 MB)")
    return file


def compare(rows: Mapping[str, Figures]) -> list[str]:
    """Return the lines of a table of ratios, of those pairs that were measured."""
    lines = ["| figure | of | against | times as fast | aim |", "|---|---|---|---:|---:|"]
    for figure, ours, theirs, aim in BARS:
        mine, other = (rows.get(name, {}).get(figure, 0.0) for name in (ours, theirs))
        if mine and other:
            ratio = other / mine if is_lower_better(figure) else mine / other
            lines.append(f"| {figure} | {ours} | {theirs} | {ratio:.2f} | {aim} |")
    return lines


def main() -> None:
    """Measure, print the tables, write the results file after each server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", default="0.6B,smollm2", help="shapes of benchmarks/checkpoint.py, and smollm2")
    parser.add_argument("--servers", default="", help="a selection")
    parser.add_argument("--workloads", default="", help="of decode_at_128, first_token, streams; all if empty")
    parser.add_argument("--peers-dir", type=Path, default=Path(".cache/peers"))
    parser.add_argument("--checkpoints-dir", type=Path, default=Path(".cache/checkpoints"))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--into", type=Path, default=HERE / "results", help="folder of the results file")
    options = parser.parse_args()
    plan = PLAN.only(options.workloads.split(",")) if options.workloads else PLAN
    figures: dict[str, dict[str, Figures]] = {}
    here = machine()
    result = {
        "command": _command(options),
        "date": time.strftime("%Y-%m-%d"),
        "machine": here,
        "figures": figures,
    }
    for name in options.checkpoints.split(","):
        model = find_model(name, options.checkpoints_dir)
        rows = figures.setdefault(name, {})
        rounds: dict[str, list[Figures]] = {}
        servers = options.servers.split(",") if options.servers else SERVERS.get(name, SERVERS_OF_A_SHAPE)
        for server in list(servers) * options.rounds:
            if row := measure_server(server, model, plan, options):
                rounds.setdefault(server, []).append(row)
                rows[server] = medians(rounds[server])
            (options.into / f"few-bits-{here['kind']}.json").write_text(json.dumps(result, indent=1) + "\n")
        print("\n".join((name, markdown(rows), "", *compare(rows), "")), flush=True)


def _command(options: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    chosen = {name: getattr(options, name) for name in ("checkpoints", "servers", "workloads", "repeat", "rounds")}
    return " ".join(
        ("python -m benchmarks.few_bits", *(f"--{name} {value}" for name, value in chosen.items() if value))
    )


if __name__ == "__main__":
    main()
