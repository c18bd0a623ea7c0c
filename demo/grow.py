"""Addition of layers to a half-trained network, without changing its outputs.

    python -m demo.grow --run /tmp/run --after 1 3

inserts a new layer after the second and the fourth of those in the run's checkpoint; `demo.train --resume` continues
with them. A new layer starts as the identity (its output matrices are zero), so that the first half of a run costs only
what the smaller network costs (compare Gong et al., 2019, on stacking). `Shape` must have the new number of layers.
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
    """Return the checkpoint with new layers for a network of `shape`; learning rates and progress stay."""
    network = DemoModel(shape)
    optimiser = Muon(network, (0.0, 0.0))
    old_names = list(content["weights"])
    new_names = {name: moved(name, after) for name in old_names}
    weights = network.state_dict() | {new_names[name]: tensor for name, tensor in content["weights"].items()}
    average = network.state_dict() | {new_names[name]: tensor for name, tensor in content["average"].items()}
    network.load_state_dict(weights)  # names and sizes must fit
    momenta = optimiser.momenta | {new_names[name]: held for name, held in content["optimiser"]["momenta"].items()}
    adam = content["optimiser"]["adam"]
    old_order = [new_names[name] for name in old_names if name not in content["optimiser"]["momenta"]]
    new_order = [name for name in weights if name not in momenta]
    state = {new_order.index(name): adam["state"][index] for index, name in enumerate(old_order)}
    groups = [group | {"params": list(range(len(new_order)))} for group in adam["param_groups"]]
    return content | {
        "weights": weights, "average": average,
        "optimiser": {"adam": {"state": state, "param_groups": groups}, "momenta": momenta},
    }  # fmt: skip


def moved(name: str, after: Sequence[int]) -> str:
    """Return the name of a tensor once there are new layers after these."""
    return LAYER.sub(lambda number: str(int(number[0]) + sum(int(number[0]) > layer for layer in after)), name)


def main() -> None:
    """Add layers to the checkpoint of a run, in place."""
    parser = argparse.ArgumentParser(description="Adds layers to a run's checkpoint.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--after", type=int, nargs="+", required=True, help="numbers of the old layers, from 0")
    options = parser.parse_args()
    path = options.run / "checkpoint.pt"
    torch.save(grow(torch.load(path), options.after, Shape()), path)


if __name__ == "__main__":
    main()
