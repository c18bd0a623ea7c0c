"""State of linear-attention layers."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """What one sequence keeps in the linear-attention layers."""

    layer_indices: tuple[int, ...]


def recurrent_shape(text: Any) -> RecurrentShape:
    """From the text configuration."""
    return RecurrentShape(tuple(i for i, kind in enumerate(text.layer_types) if kind == "linear_attention"))


def split_rows(body: nn.Module) -> None:
    """Run linear-attention layers row by row."""
