"""Network over many rows of one length at once, for a GPU: the same losses and gradients as `Network`'s rows.

A row holds one or more lessons one after another. The adapter is applied beside the frozen weights and not merged into
them: in bfloat16 a merged weight is too coarse for the small steps at the beginning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from demo.adapter.attention import HeadShape, Rotation
from demo.adapter.network import Gradients, Group, Network, Scores
from demo.adapter.pointwise import Pointwise

TARGETS_AT_ONCE = 4_096  # whose logits are in memory, 200 MB in float32 for each 1,000 of them


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one length. All but the last three are [rows, length]; these are as in `Row`, places of the flat batch.

    A token sees those before it of its own `lesson` that have segment 0, the prefix, or its own `segment`.
    """

    ids: Tensor
    positions: Tensor
    lessons: Tensor
    segments: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_attention(batch: Batch, dtype: torch.dtype) -> Attend:
    """Attention with a matrix of what is added to the scores."""
    same = batch.lessons[:, :, None] == batch.lessons[:, None]
    own = (batch.segments[:, None] == 0) | (batch.segments[:, :, None] == batch.segments[:, None])
    seen = (same & own).tril_()
    added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]
    backends = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(queries, keys, values, added.expand(-1, queries.shape[1], -1, -1))

    return attend


_compiled_flex = torch.compile(flex_attention, dynamic=False)


def block_attention(batch: Batch, dtype: torch.dtype) -> Attend:
    """Attention that leaves out blocks of which nothing is seen; compiled, on GPUs only."""
    lessons, segments = batch.lessons, batch.segments

    def is_seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = lessons[row, query] == lessons[row, key]
        own = (segments[row, key] == 0) | (segments[row, query] == segments[row, key])
        return same & own & (query >= key)

    rows, length = batch.ids.shape
    mask: BlockMask = create_block_mask(is_seen, rows, None, length, length, device=batch.ids.device)

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output: Tensor = _compiled_flex(queries, keys, values, block_mask=mask)
        return output

    return attend


class _Project(Function):
    """x [tokens, inputs] times the frozen weight, and times the adapter; adds the gradients of A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, gradients: Gradients | None) -> Tensor:
        low = F.linear(x, group.downs)
        output = F.linear(x, group.frozen)
        for number, (first, last) in enumerate(group.spans):
            output[:, first:last].addmm_(_of(low, group, number), group.ups[first:last].T)
        ctx.x, ctx.low, ctx.group, ctx.gradients = x, low, group, gradients
        return output

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        group, (outer,) = ctx.group, given
        of_a, of_b = ctx.gradients.of(group)
        inner = torch.cat([outer[:, first:last] @ group.ups[first:last] for first, last in group.spans], 1)
        of_a += inner.T @ ctx.x
        for number, (first, last) in enumerate(group.spans):
            of_b[first:last] += outer[:, first:last].T @ _of(ctx.low, group, number)
        return (outer @ group.frozen).addmm_(inner, group.downs), None, None


def _of(low: Tensor, group: Group, number: int) -> Tensor:
    return low[:, number * group.rank : (number + 1) * group.rank]


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, pointwise: Pointwise) -> Tensor:
        output, ctx.scale = pointwise.norm(x, weight, epsilon)
        ctx.x, ctx.weight, ctx.pointwise = x, weight, pointwise
        return output

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.pointwise.norm_back(given[0], ctx.x, ctx.scale, ctx.weight), None, None, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, pointwise: Pointwise) -> Tensor:
        ctx.joined, ctx.pointwise = joined, pointwise
        return pointwise.gate(joined)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return ctx.pointwise.gate_back(given[0], ctx.joined), None


class _Heads(Function):
    """The queries, keys and values of [tokens, width], as attention takes them."""

    @staticmethod
    def forward(
        ctx: Any, joined: Tensor, rotation: tuple[Tensor, Tensor], shape: HeadShape, pointwise: Pointwise
    ) -> Any:
        ctx.rotation, ctx.num_keys, ctx.pointwise = rotation, shape.keys, pointwise
        return pointwise.split_heads(joined, *rotation, shape.queries, shape.keys, shape.size)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None, None]:
        contiguous = tuple(one.contiguous() for one in given)
        return ctx.pointwise.join_heads(contiguous, *ctx.rotation, ctx.num_keys), None, None, None


class _Loss(Function):
    """Weighted sum of the cross entropies of [targets, width]; its gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, embedding: Tensor, batch: Batch, right: list[Tensor]) -> Tensor:
        total = torch.zeros((), device=x.device)
        gradient = torch.empty_like(x)
        for first in range(0, len(x), TARGETS_AT_ONCE):
            chosen = slice(first, first + TARGETS_AT_ONCE)
            picked, weights = batch.targets[chosen, None], batch.weights[chosen, None]
            logits = F.linear(x[chosen], embedding).float()
            right.append(logits.argmax(-1) == batch.targets[chosen])
            logits = logits.log_softmax(-1)
            total -= (logits.gather(1, picked) * weights).sum()
            logits = logits.exp_().scatter_add_(1, picked, torch.full_like(weights, -1.0)).mul_(weights)
            gradient[chosen] = logits.to(x.dtype) @ embedding
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient * given[0].to(ctx.gradient.dtype), None, None, None


class BatchedNetwork(Network):
    """The decoder on one device. `pointwise` and `attention` say how it computes."""

    pointwise: Pointwise = Pointwise()
    attention: Callable[[Batch, torch.dtype], Attend] = staticmethod(masked_attention)

    def move(self, device: torch.device) -> None:
        """Move all weights and parameters to a device."""
        self.embedding, self.final_norm = self.embedding.to(device), self.final_norm.to(device)
        self.norms = [(first.to(device), second.to(device)) for first, second in self.norms]
        for group in self.all_groups():
            group.frozen, group.a, group.b = group.frozen.to(device), group.a.to(device), group.b.to(device)
            group.merged = torch.empty(0)  # not computed with, until `merge`
            group.prepare()

    def prepare(self) -> None:
        """Bring what the network computes with up to date with A and B."""
        for group in self.all_groups():
            group.prepare()

    def run_batch(self, batch: Batch, gradients: Gradients | None = None, loss_scale: float = 1.0) -> Scores:
        """Compute rows; with `gradients` add those of `loss_scale` times the sum of their losses."""
        right: list[Tensor] = []
        with torch.set_grad_enabled(gradients is not None):
            hidden = self._hidden_of(batch, gradients)[batch.places]
            rows = _Norm.apply(hidden, self.final_norm, self.shape.epsilon, Pointwise())
            loss = _Loss.apply(rows, self.embedding, batch, right)
            if gradients is not None:
                torch.autograd.backward(loss * loss_scale)
        return Scores(float(loss.detach()), torch.cat(right))

    def _hidden_of(self, batch: Batch, gradients: Gradients | None) -> Tensor:
        shape, epsilon, pointwise = self.shape, self.shape.epsilon, self.pointwise
        turned = Rotation.at(batch.positions.flatten(), shape.heads.size, shape.theta)
        rotation = tuple(
            one.view(len(batch.ids), 1, -1, shape.heads.size // 2) for one in (turned.cosines, turned.sines)
        )
        attention = masked_attention if gradients is None else self.attention  # no second compilation
        attend_to = attention(batch, self.dtype)
        hidden = self.embedding[batch.ids.flatten()].float().requires_grad_(gradients is not None)
        for (first, second), (attend, output, widen, narrow) in zip(self.norms, self.groups, strict=True):
            joined = _Project.apply(_Norm.apply(hidden, first, epsilon, pointwise), attend, gradients)
            mixed = attend_to(*_Heads.apply(joined, rotation, shape.heads, pointwise))
            flat = mixed.transpose(1, 2).reshape(len(hidden), -1)
            hidden = hidden + _Project.apply(flat, output, gradients)
            gated = _Gate.apply(
                _Project.apply(_Norm.apply(hidden, second, epsilon, pointwise), widen, gradients), pointwise
            )
            hidden = hidden + _Project.apply(gated, narrow, gradients)
        return hidden
