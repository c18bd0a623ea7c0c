"""Build of the demonstration model in one command: tokenizer, training, export, evaluation.

    python -m demo.build --seed 0 --minutes 100 --into /tmp/built

Without --new-tokenizer the shipped tokenizer is kept: tests rely on its ids. With --resume training continues from the
last checkpoint in the folder of the run.
"""

import argparse
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer

from demo.cases import judge, write_cases
from demo.evaluate import answer_in_process, write_table
from demo.export import SHIPPED, export_model
from demo.lexicon import train_tokenizer
from demo.train import Run, train


def build(run: Run, into: Path, new_tokenizer: bool) -> None:
    """Train in run.folder and write the finished model into `into`."""
    run.folder.mkdir(parents=True, exist_ok=True)
    vocabulary = run.folder / "tokenizer.json"
    if new_tokenizer and not run.resume:
        train_tokenizer(run.seed).save(str(vocabulary))
    elif not vocabulary.exists():
        shutil.copy(SHIPPED / "tokenizer.json", vocabulary)
    train(run)
    export_checkpoint(run, into)


def export_checkpoint(run: Run, into: Path) -> None:
    """Write the averaged weights of the last checkpoint as a loadable model."""
    average = torch.load(run.folder / "checkpoint.pt")["average"]
    export_model(average, run.shape, Tokenizer.from_file(str(run.folder / "tokenizer.json")), into)


def main() -> None:
    """Build, evaluate without a grammar and print the table."""
    parser = argparse.ArgumentParser(description="Builds the demonstration model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="folder of log and checkpoints")
    parser.add_argument("--into", type=Path, default=SHIPPED, help="folder of the finished model")
    parser.add_argument("--new-tokenizer", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    options = parser.parse_args()
    run = Run(options.run, options.minutes, options.seed, options.workers, resume=options.resume)
    if options.export_only:
        export_checkpoint(run, options.into)
    else:
        build(run, options.into, options.new_tokenizer)
    cases = write_cases(seed=1)
    outcomes = answer_in_process(cases, options.into)
    print(write_table(cases, [judge(case, outcome) for case, outcome in zip(cases, outcomes, strict=True)]))


if __name__ == "__main__":
    main()
