"""Mean of two adapters of the same base: the mean of what they add to its weights, brought back to their rank.

    python -m demo.adapter.mean FIRST SECOND --into FOLDER

The mean of two products of rank r has a rank of 2 r at most. Its r largest singular values are kept; the share of the
squared ones that is lost is printed, little for two checkpoints of one run.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.adapter.peft_format import CONFIG, WEIGHTS, read_sizes


def mean_of(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, float]:
    """A [rank, inputs] and B [outputs, rank] whose product is nearest to the mean of two such; the share lost."""
    rank = first[0].shape[0]
    a = torch.cat((first[0], second[0])).float()
    b = torch.cat((first[1], second[1]), 1).float() / 2
    inputs, from_a = torch.linalg.qr(a.T)
    outputs, from_b = torch.linalg.qr(b)
    left, values, right = torch.linalg.svd(from_b @ from_a.T)
    roots = values[:rank].sqrt()
    squares = values.square()
    lost = float(squares[rank:].sum() / squares.sum())
    return roots[:, None] * (right[:rank] @ inputs.T), (outputs @ left[:, :rank]) * roots, lost


def write_mean(first: Path, second: Path, into: Path) -> float:
    """Write the mean of two folders; returns the largest share lost. Raises ValueError for unlike adapters."""
    if read_sizes(first) != read_sizes(second):
        raise ValueError(f"{first} and {second} have ranks and alphas {read_sizes(first)} and {read_sizes(second)}")
    one, other = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    if one.keys() != other.keys():
        raise ValueError(f"{first} and {second} adapt other modules")
    found: dict[str, Tensor] = {}
    most = 0.0
    for a in (name for name in one if ".lora_A." in name):
        b = a.replace(".lora_A.", ".lora_B.")
        new_a, new_b, lost = mean_of((one[a], one[b]), (other[a], other[b]))
        found[a], found[b] = new_a.to(one[a].dtype).contiguous(), new_b.to(one[b].dtype).contiguous()
        most = max(most, lost)
    into.mkdir(parents=True, exist_ok=True)
    save_file({name: found[name] for name in one}, into / WEIGHTS, metadata={"format": "pt"})
    shutil.copy(first / CONFIG, into / CONFIG)
    return most


def main() -> None:
    """Write the mean."""
    parser = argparse.ArgumentParser(description="Writes the mean of two adapters.")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--into", type=Path, required=True, help="folder to write")
    given = parser.parse_args()
    lost = write_mean(given.first, given.second, given.into)
    print(f"{given.into}: at most {lost:.3%} of a projection's mean lost")


if __name__ == "__main__":
    main()
