"""Ratios, Markdown tables and the chart of results files: python -m benchmarks.table benchmarks/results/peers*.json.

Rewrites the text between the markers in `docs/performance.md` and draws `docs/performance.svg` (needs matplotlib: the
extra `bench`).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCUMENT = Path("docs/performance.md")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
LOWER_IS_BETTER = ("_s", "_ms", "_mib")
CHARTED = (
    "decode_at_128_tok_per_s", "decode_at_2000_tok_per_s", "first_token_2000_cold_s", "first_token_2000_known_1900_s",
    "streams_8_tok_per_s", "streams_16_tok_per_s", "streams_64_tok_per_s", "streams_32_tok_per_s", "forced_call_s",
    "agents_forced_round_s", "agents_auto_round_s", "start_s",
)  # fmt: skip
Row = Mapping[str, float]


def ratios(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return toolwire's ratio to the best peer for each figure; above 1 is better."""
    found: dict[str, float] = {}
    for figure, own in rows.get("toolwire", {}).items():
        peers = [row[figure] for name, row in rows.items() if not name.startswith("toolwire") and row.get(figure)]
        if peers and own:
            found[figure] = min(peers) / own if is_lower_better(figure) else own / max(peers)
    return found


def is_lower_better(figure: str) -> bool:
    """Return whether a lower value of this figure is better, from the unit in its name."""
    return figure.endswith(LOWER_IS_BETTER) and not figure.endswith("_per_s")


def markdown(rows: Mapping[str, Row]) -> str:
    """Return a table of one checkpoint's figures with a column for each server."""
    ratio = ratios(rows)
    lines = ["| figure | " + " | ".join(rows) + " | toolwire / best peer |", "|---" * (len(rows) + 2) + "|"]
    for figure in dict.fromkeys(figure for row in rows.values() for figure in row):
        cells = [f"{row[figure]:.3g}" if figure in row else "-" for row in rows.values()]
        last = f"{ratio[figure]:.2f}" if figure in ratio else "-"
        lines.append(f"| {figure} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines)


def report(result: Mapping[str, Any]) -> str:
    """Return all tables, with the command, commit and machine that they come from."""
    origin = f"Command: `{result['command']}`, commit {result['machine']['commit']}, {result['date']}, "
    machine = result["machine"]
    parts = [origin + f"{machine['cpu']} ({machine['kind']}), Python {machine['python']}."]
    parts += [f"### {name}\n\n{markdown(rows)}" for name, rows in result["figures"].items()]
    return "\n\n".join(parts)


def draw(results: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Draw a bar for each ratio to the best peer on a logarithmic scale; right of 1 is faster."""
    from matplotlib.figure import Figure  # needed for the chart only

    bars = [
        (f"{name}: {figure.removesuffix('_s').removesuffix('_tok_per').replace('_', ' ')}", ratio[figure])
        for result in results
        for name, rows in result["figures"].items()
        for ratio in (ratios(rows),)
        for figure in CHARTED
        if figure in ratio
    ]
    figure = Figure(figsize=(8, 0.4 * len(bars) + 1), layout="constrained")
    axes = figure.subplots()
    colours = ["#2a7f62" if value >= 1 else "#b5563c" for _, value in bars]
    drawn = axes.barh([label for label, _ in bars], [value - 1 for _, value in bars], left=1, color=colours)
    axes.bar_label(drawn, [f"{value:.2f}" for _, value in bars], padding=3)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("toolwire against the best peer (above 1: toolwire is better)")
    figure.savefig(target)


def main() -> None:
    """Update the document and the chart."""
    results = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    chart = DOCUMENT.with_suffix(".svg")
    parts = [f"![toolwire against the best peer]({chart.name})", *map(report, results)]
    DOCUMENT.write_text("\n".join((before + BEGIN, "\n\n".join(parts), END + after)), encoding="utf-8")
    draw(results, chart)


if __name__ == "__main__":
    main()
