"""AdamW over a list of float32 tensors whose gradients the caller has summed."""

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.98)
EPSILON = 1e-8


class AdamW:
    """Moments of the parameters; `step` changes these in place."""

    def __init__(self, parameters: Sequence[Tensor], decay: float, clip: float) -> None:
        self.parameters = list(parameters)
        self.first = [torch.zeros_like(one) for one in self.parameters]
        self.second = [torch.zeros_like(one) for one in self.parameters]
        self.decay = decay
        self.clip = clip
        self.num_steps = 0

    def step(self, gradients: Sequence[Tensor], rate: float) -> float:
        """Update with gradients, which are overwritten, cut to norm `clip`; returns their norm before."""
        given = list(gradients)
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in given])))
        torch._foreach_mul_(given, min(1.0, self.clip / max(norm, EPSILON)))
        self.num_steps += 1
        first_weight, second_weight = 1 - BETAS[0], 1 - BETAS[1]
        torch._foreach_lerp_(self.first, given, first_weight)
        torch._foreach_mul_(self.second, BETAS[1])
        torch._foreach_addcmul_(self.second, given, given, second_weight)
        scale = (1 - BETAS[1] ** self.num_steps) ** 0.5
        sizes = torch._foreach_sqrt(self.second)
        torch._foreach_add_(sizes, EPSILON * scale)
        torch._foreach_mul_(self.parameters, 1 - rate * self.decay)
        torch._foreach_addcdiv_(self.parameters, self.first, sizes, -rate * scale / (1 - BETAS[0] ** self.num_steps))
        return norm
