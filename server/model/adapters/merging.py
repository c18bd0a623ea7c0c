"""An adapter folded into a model's weights while they are loaded, as PEFT's `merge_and_unload` does it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from server.adapter_folder import PartName, weight_part
from server.errors import CannotStart
from server.model.adapters.weights import Factors, read_adapter

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class MergedAdapter:
    """Changes each weight once, in whatever order they come. Raises CannotStart for an adapter of another model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = dict(read_adapter(folder, None, torch.float32).factors)

    def changes(self, name: str) -> bool:
        """Whether the weight of this name has a part of the adapter that is left."""
        part = weight_part(name)
        return part is not None and part in self._left

    def merged(self, name: str, weight: Any, dtype: torch.dtype) -> Any:
        """The weight of this name with its part of the adapter, in `dtype`; as it is where the adapter has none."""
        part = weight_part(name)
        factors = None if part is None else self._left.pop(part, None)
        return weight if part is None or factors is None else self._sum(part, factors, weight, dtype)

    def merge_into(self, decoder: Any) -> None:
        """Change those of a loaded decoder's layers that are left."""
        for part in list(self._left):
            layers = decoder.layers
            parent, _, own = part.module.partition(".")
            linear = getattr(getattr(layers[part.layer], parent, None), own, None) if part.layer < len(layers) else None
            if linear is None:
                break
            weight = linear.weight.detach() if type(linear) is nn.Linear else None
            merged = self._sum(part, self._left.pop(part), weight, torch.float32 if weight is None else weight.dtype)
            linear.weight = nn.Parameter(merged, requires_grad=False)
        self.finish()

    def finish(self) -> None:
        """Raise CannotStart if the model had no weight for a part."""
        if self._left:
            raise CannotStart(
                f"{self._folder} is an adapter of another model: this one has no {next(iter(self._left))}"
            )

    def _sum(self, part: PartName, factors: Factors, weight: Any, dtype: torch.dtype) -> Tensor:
        if not isinstance(weight, Tensor) or weight.dtype not in FLOATS:
            raise CannotStart(
                f"--merge-adapter {self._folder}: the checkpoint's own {part} is quantized; "
                "serve the adapter beside it with --adapter NAME=FOLDER"
            )
        share = (factors.up.float() @ factors.down.float()) * factors.scale
        if share.shape != weight.shape:
            raise CannotStart(
                f"{self._folder} is an adapter of another model: its {part} would be {list(share.shape)}, "
                f"and this model's is {list(weight.shape)}"
            )
        return (weight.float() + share.to(weight.device)).to(dtype)


def open_merged_adapter(folder: str) -> MergedAdapter | None:
    """The adapter of `--merge-adapter`; None for an empty path. Raises CannotStart."""
    return MergedAdapter(Path(folder).expanduser()) if folder else None
