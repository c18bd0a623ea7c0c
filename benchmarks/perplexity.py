"""Measures the perplexity of a checkpoint at each width of its weights, on the pages of the documentation or on a text.

    python -m benchmarks.perplexity MODEL [--text FILE] [--quantize none,int8,int4] [--kv-dtype auto,int8]
        [--activation-bits auto,8,16] [--tokens 4096] [--window 512]

MODEL is a folder or a GGUF file. Every loss is compared with that of the first width, the first type of keys and values
and the first number of bits.
The text is cut into windows, each computed from its own beginning; a window's first half is context and does not count.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer

from server.engine.assemble import read_tokenizer
from server.model.batch import Batch, PromptTargets, Row
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

ROOT = Path(__file__).parent.parent
BLOCK_SIZE = 32


def read_text(path: Path | None) -> str:
    """The file, or the pages of the documentation."""
    pages = [path] if path else [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n\n".join(page.read_text(encoding="utf-8") for page in pages)


def windows(ids: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    """Whole windows."""
    return (ids[first : first + length] for first in range(0, len(ids) - length + 1, length))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--quantize", type=lambda text: text.split(","), default=["none", "int8", "int4"])
    parser.add_argument("--kv-dtype", type=lambda text: text.split(","), default=["auto"])
    parser.add_argument("--activation-bits", type=lambda text: text.split(","), default=["auto"])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_buffer(read_tokenizer(options.model))
    ids = tokenizer.encode(read_text(options.text), add_special_tokens=False).ids[: options.tokens]
    plain = 0.0
    for quantize, kv_dtype, bits in product(options.quantize, options.kv_dtype, options.activation_bits):
        settings = EngineSettings(
            device="cpu",
            cpu_isa=options.isa,
            dtype=options.dtype,
            quantize=quantize,
            kv_dtype=kv_dtype,
            activation_bits=bits,
        )
        loaded = load(options.model, settings, lambda fraction: None)
        runner = Runner(loaded, options.window // BLOCK_SIZE + 1, BLOCK_SIZE)
        losses = [loss for window in windows(ids, options.window) for loss in losses_of(runner, window)]
        found = math.exp(sum(losses) / len(losses))
        plain = plain or found
        change = f"{100 * (found / plain - 1):+.2f} %"
        size = loaded.weight_bytes >> 20
        print(
            f"{quantize:6} KV {kv_dtype:5} activations {bits:4} {size:6} MiB  perplexity {found:9.4f}  {change}",
            flush=True,
        )


def losses_of(runner: Runner, window: Sequence[int]) -> list[float]:
    """Negative log probabilities of the second half of a window."""
    first = len(window) // 2
    targets = PromptTargets(first - 1, window[first:], 0)
    blocks = range(-(-len(window) // BLOCK_SIZE))
    batch = Batch((Row(window, 0, blocks, 0, None, targets=targets),))
    (scored,) = runner.sample(runner.launch(batch), batch, None).read()
    return [-entry.logprob for entry in scored.prompt_logprobs]


if __name__ == "__main__":
    with torch.inference_mode():
        main()
