"""Comparison of a GGUF file here and in llama.cpp: token ids, 64 greedy tokens of each prompt, perplexity, speed.

    python -m benchmarks.llamacpp PEERS_DIR        once; compiles llama.cpp for this CPU
    python -m benchmarks.gguf_text FILE.gguf [--peers-dir PEERS_DIR] [--dtype auto] [--threads 0]
    PEERS_DIR/llamacpp/bin/llama-quantize --allow-requantize FILE.gguf EXACT.gguf F32
    python -m benchmarks.gguf_text FILE.gguf --theirs EXACT.gguf

Prompts are twenty short beginnings and questions in the file's own template; the text is this project's documentation.
llama.cpp rounds activations to eight bits where weights have few; of EXACT.gguf, the same numbers in float32, it does
not. Exit code 1 if ids differ, if the perplexities differ by more than 0.2 %, or if a first difference is no near tie:
that is, if the token that was not taken is more than TIE behind on either side. Speed is that of one stream without
drafts: the steps alone, the fastest of the first prompts, one program after the other on as many threads. Beside other
work llama.cpp is best given one thread, for its threads wait for each other many times a token.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.gguf_llamacpp import Decoded, Request
from server.checkpoint.checkpoint import Checkpoint
from server.messages import Sampling
from server.model.batch import Batch, PromptTargets, Row, RowSampling
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

ROOT = Path(__file__).parents[1]
COUNT, WINDOW, NUM_WINDOWS, BLOCK = 64, 512, 8, 32
TIMED = 3  # prompts whose decoding is timed
TIE = 0.5  # in logits: llama.cpp rounds activations to eight bits, and we weights or sums to sixteen
LARGEST_DIFFERENCE = 0.002  # of the perplexities
PAGES = ("docs/memory.md", "docs/api.md", "docs/walk.md")
QUESTIONS = (
    "What is the capital of France?", "Write a haiku about the sea.", "Explain photosynthesis in two sentences.",
    "List three uses of a paper clip.", "Translate to German: Where is the station?", "Who wrote Hamlet?",
    "What is 17 + 25?", "Give me a recipe for pancakes.", "Why is the sky blue?", "Name five rivers in Europe.",
)  # fmt: skip
BEGINNINGS = (
    "Once upon a time there was a fox who", "The three laws of thermodynamics are", "def fibonacci(n):\n",
    "In 1969, the first humans", "The recipe needs two eggs,", "import numpy as np\n\n", "Dear Sir or Madam,\n\n",
    "Photosynthesis is the process by which", "The quick brown fox", "1, 2, 3, 5, 8, 13,",
)  # fmt: skip


def main() -> int:
    """Compare both and print what differs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--peers-dir", type=Path, default=Path("peers"))
    parser.add_argument("--dtype", default="auto", help="type of the weights here")
    parser.add_argument("--theirs", type=Path, help="the file that llama.cpp is given; else the same")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both; 0: every core")
    options = parser.parse_args()
    request = make_request(options.file, options.threads or os.cpu_count() or 1)
    python = options.peers_dir / "llamacpp" / "bin" / "python"
    command = [python.absolute(), "-m", "benchmarks.gguf_llamacpp", (options.theirs or options.file).absolute()]
    done = subprocess.run(command, input=json.dumps(asdict(request)), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    theirs = json.loads(done.stdout)
    runner = make_runner(options.file, options.dtype, request.threads)
    decoded = [Decoded(**one) for one in theirs["decoded"]]
    if not options.theirs:
        compare_speed([decode_alone(runner, prompt) for prompt in request.prompts[:TIMED]], decoded[:TIMED])
    checks = (
        compare_ids(options.file, request.texts, theirs["encoded"]),
        compare_greedy(decode(runner, request), decoded),
        compare_perplexity([score(runner, window) for window in request.windows], theirs["scores"]),
    )
    return 0 if all(checks) else 1


def make_request(file: Path, threads: int) -> Request:
    """Prompts and windows as the file's own tokenizer encodes them."""

    checkpoint = Checkpoint.open(file)
    encoder, template = checkpoint.encoder, checkpoint.template
    chats = [
        template.render({"messages": [{"role": "user", "content": question}], "add_generation_prompt": True})
        for question in QUESTIONS
    ]
    prompts = [*map(encoder.encode, chats), *map(encoder.encode_text, BEGINNINGS)]
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    ids = [token_id for text in texts for token_id in encoder.encode_text(text)]
    windows = [ids[at * WINDOW : (at + 1) * WINDOW] for at in range(NUM_WINDOWS)]
    return Request([*texts, *BEGINNINGS], prompts, COUNT, windows, threads)


def make_runner(file: Path, dtype: str, threads: int) -> Runner:
    """The model on the CPU, as the server runs it."""
    settings = EngineSettings(device="cpu", dtype=dtype, threads=threads)  # type: ignore[arg-type]
    loaded = load(file, settings, lambda fraction: None)
    return Runner(loaded, blocks_of(len(QUESTIONS) + len(BEGINNINGS)).stop, BLOCK)


def blocks_of(number: int) -> range:
    """The blocks of one of the streams, enough for a window."""
    each = -(-(WINDOW + COUNT) // BLOCK)
    return range(number * each, (number + 1) * each)


def decode(runner: Runner, request: Request) -> list[Decoded]:
    """Greedy ids behind each prompt, all at once."""

    greedy = RowSampling(Sampling(max_tokens=COUNT, temperature=0.0, num_logprobs=2), 0, [], [])
    decoded = [Decoded([], []) for _ in request.prompts]
    pending = [(prompt, 0) for prompt in request.prompts]
    for _ in range(request.count):
        rows = [Row(ids, start, blocks_of(number), 1, greedy) for number, (ids, start) in enumerate(pending)]
        batch = Batch(tuple(rows))
        for one, result in zip(decoded, runner.sample(runner.launch(batch), batch, None).read(), strict=True):
            assert result.logprobs is not None, result.fault
            (first, best), (_, second) = result.logprobs[0].top
            one.ids.append(first)
            one.margins.append(best - second)
        pending = [([one.ids[-1]], start + len(tokens)) for one, (tokens, start) in zip(decoded, pending, strict=True)]
    return decoded


def decode_alone(runner: Runner, prompt: list[int]) -> float:
    """Seconds of the greedy steps behind the first of one prompt."""
    greedy, pending, seconds = RowSampling(Sampling(max_tokens=COUNT, temperature=0.0), 0, [], []), (prompt, 0), 0.0
    for place in range(COUNT):
        began_s = time.perf_counter()
        batch = Batch((Row(pending[0], pending[1], blocks_of(0), 1, greedy),))
        (result,) = runner.sample(runner.launch(batch), batch, None).read()
        seconds += (time.perf_counter() - began_s) * (place > 0)
        pending = (list(result.token_ids), pending[1] + len(pending[0]))
    return seconds


def score(runner: Runner, window: list[int]) -> float:
    """Log probability of the ids of a window behind its first."""

    batch = Batch((Row(window, 0, blocks_of(0), 0, None, None, PromptTargets(0, window[1:], 0)),))
    (result,) = runner.sample(runner.launch(batch), batch, None).read()
    return sum(found.logprob for found in result.prompt_logprobs)


def compare_ids(file: Path, texts: list[str], theirs: list[list[int]]) -> bool:
    """Whether both encode plain text to the same ids."""

    encoder = Checkpoint.open(file).encoder
    same = sum(encoder.encode_text(text) == ids for text, ids in zip(texts, theirs, strict=True))
    print(f"token ids: {same} of {len(texts)} texts are encoded alike, {sum(map(len, theirs))} tokens")
    return same == len(texts)


def compare_greedy(ours: list[Decoded], theirs: list[Decoded]) -> bool:
    """Whether the greedy ids are the same, or differ first at a near tie."""
    num_same, is_good = 0, True
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        pairs = zip(our.ids, their.ids, strict=True)
        place = next((place for place, (mine, other) in enumerate(pairs) if mine != other), None)
        num_same += place is None
        if place is None:
            continue
        margins = our.margins[place], their.margins[place]
        is_tie = max(margins) <= TIE
        is_good &= is_tie
        kind = "a near tie" if is_tie else "no tie"
        where = f"prompt {number}: first difference at token {place}, {kind}"
        print(f"{where}: ahead by {margins[0]:.3f} here, {margins[1]:.3f} in llama.cpp")
    print(f"greedy text: {num_same} of {len(ours)} prompts give the same {COUNT} tokens")
    return is_good


def compare_speed(ours: list[float], theirs: list[Decoded]) -> None:
    """Print both speeds."""
    mine, other = (COUNT - 1) / min(ours), (COUNT - 1) / min(one.seconds for one in theirs)
    print(f"one stream: {mine:.1f} tok/s here, {other:.1f} in llama.cpp ({mine / other:.2f} x)")


def compare_perplexity(ours: list[float], theirs: list[float]) -> bool:
    """Whether both predict the text alike."""
    count = len(ours) * (WINDOW - 1)
    mine, other = (math.exp(-sum(scores) / count) for scores in (ours, theirs))
    difference = mine / other - 1
    print(f"perplexity of {count} tokens: {mine:.4f} here, {other:.4f} in llama.cpp ({100 * difference:+.3f} %)")
    return abs(difference) <= LARGEST_DIFFERENCE


if __name__ == "__main__":
    sys.exit(main())
