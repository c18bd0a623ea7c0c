"""Gives a half-trained network more layers, without changing what it computes.

    python -m demo.grow --run /tmp/run --after 1 3

puts a new layer after the second and the fourth of those in the run's checkpoint; `demo.train --resume` goes on with
them.  A new layer adds nothing at first (its output matrices are zero) and learns from there, so that the first half
of a run costs what the smaller network costs (compare Gong et al., 2019, on stacking).  `Shape` has to have the new
number of layers.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from demo.model import DemoModel, Shape
from demo.muon import Muon

LAYER = re.compile(r"(?<=model\.layers\.)\d+(?=\.)")


def grow(content: dict[str, Any], after: Sequence[int], shape: Shape) -> dict[str, Any]:
    """The checkpoint with new layers, its network being of `shape` now; learning rates and progress stay."""
    network = DemoModel(shape)
    optimiser = Muon(network, (0.0, 0.0))
    old_names = list(content["weights"])
    places = {name: moved(name, after) for name in old_names}
    weights = network.state_dict() | {places[name]: tensor for name, tensor in content["weights"].items()}
    average = network.state_dict() | {places[name]: tensor for name, tensor in content["average"].items()}
    network.load_state_dict(weights)  # names and sizes must fit
    momenta = optimiser.momenta | {places[name]: held for name, held in content["optimiser"]["momenta"].items()}
    adam = content["optimiser"]["adam"]
    old_order = [places[name] for name in old_names if name not in content["optimiser"]["momenta"]]
    new_order = [name for name in weights if name not in momenta]
    state = {new_order.index(name): adam["state"][index] for index, name in enumerate(old_order)}
    groups = [group | {"params": list(range(len(new_order)))} for group in adam["param_groups"]]
    return content | {
        "weights": weights, "average": average,
        "optimiser": {"adam": {"state": state, "param_groups": groups}, "momenta": momenta},
    }  # fmt: skip


def moved(name: str, after: Sequence[int]) -> str:
    """The name a tensor has once there are new layers after these."""
    return LAYER.sub(lambda number: str(int(number[0]) + sum(int(number[0]) > place for place in after)), name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Adds layers to a run's checkpoint.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--after", type=int, nargs="+", required=True, help="numbers of the old layers, from 0")
    options = parser.parse_args()
    path = options.run / "checkpoint.pt"
    torch.save(grow(torch.load(path), options.after, Shape()), path)


if __name__ == "__main__":
    main()
