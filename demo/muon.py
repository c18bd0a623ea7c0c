"""Optimiser: Muon for the matrices inside the network, AdamW for the embedding and the scales.

Muon (Keller Jordan, 2024) replaces a matrix's momentum by the nearest matrix with equal singular values, found by
Newton-Schulz iterations. Matrices of one shape go through the iterations as one batch.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Coefficients of the quintic iteration, as published with Muon.
A, B, C = 3.4445, -4.7750, 2.0315
DECAY = 0.01


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Return the stack [count, rows, columns] with singular values near 1."""
    x = stack.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.mT if tall else x).to(stack.dtype)


class Muon:
    """Muon for a network's matrices and AdamW for the rest; the workers split the iterations between them."""

    def __init__(self, network: nn.Module, rates: tuple[float, float], worker: int = 0, workers: int = 1) -> None:
        """rates: learning rate of the matrices, and of everything else."""
        named = dict(network.named_parameters())
        self.matrices = {name: p for name, p in named.items() if p.ndim == 2 and "embed" not in name}
        others = [p for name, p in named.items() if name not in self.matrices]
        self.adam = torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.95), weight_decay=0.0)
        self.momenta = {name: torch.zeros_like(p) for name, p in self.matrices.items()}
        self.rates = rates
        self.worker, self.workers = worker, workers

    @torch.no_grad()
    def step(self, scale: float, momentum: float = 0.95) -> None:
        """Apply one update with the learning rates multiplied by scale, and clear the gradients."""
        matrix_rate, other_rate = (rate * scale for rate in self.rates)
        for group in self.adam.param_groups:
            group["lr"] = other_rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for name, update in self._updates(momentum).items():
            parameter = self.matrices[name]
            rows, columns = parameter.shape
            size = max(1.0, rows / columns) ** 0.5 * matrix_rate
            parameter.mul_(1 - matrix_rate * DECAY).sub_(update, alpha=size)
            parameter.grad = None

    def _updates(self, momentum: float) -> dict[str, Tensor]:
        """Return the orthogonal updates by name; each worker computes a part, which is shared with all."""
        directions = {name: self._direction(name, momentum) for name in self.matrices}
        flat = torch.zeros(sum(p.numel() for p in self.matrices.values()))
        sizes = [p.numel() for p in self.matrices.values()]
        updates = {
            name: part.view_as(self.matrices[name]) for name, part in zip(self.matrices, flat.split(sizes), strict=True)
        }
        for names in self._by_shape():
            mine = names[self.worker :: self.workers]
            if mine:
                for name, update in zip(mine, orthogonalise(torch.stack([directions[n] for n in mine])), strict=True):
                    updates[name].copy_(update)
        if self.workers > 1:
            dist.all_reduce(flat)
        return updates

    def _direction(self, name: str, momentum: float) -> Tensor:
        grad = self.matrices[name].grad
        assert grad is not None
        buffer = self.momenta[name].lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum)

    def _by_shape(self) -> Iterable[list[str]]:
        groups: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in self.matrices.items():
            groups[parameter.shape].append(name)
        return groups.values()

    def state(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load(self, state: dict[str, object]) -> None:
        """Restore a state returned by `state()`."""
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
        momenta = state["momenta"]
        assert isinstance(momenta, dict)
        for name, buffer in self.momenta.items():
            buffer.copy_(momenta[name])
