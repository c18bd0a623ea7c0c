"""Linear layers whose weights are laid out once for the products that decoding makes."""

from torch import nn


def pack_linears(model: nn.Module) -> None:
    """Replace linear layers by packed ones where that pays."""
