"""Network of a Llama-like decoder whose weights are frozen, with a low-rank adapter (LoRA) on its projections.

The adapter is merged into the weights before each step, so that a token costs forward what it costs without one. The
gradient of a merged weight is never computed: with y = x W', W' = W + B A, it is enough to have (dy B)^T x and
dy^T (x A^T), two products with `rank` columns. Gradients are added to a `Gradients` of the caller's, so that several
threads share the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from demo.adapter.attention import HeadShape, Rotation, SegmentAttention, Segments

# Projections that read the same input are one product.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
BLOCK = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}
CHUNK = 128  # tokens whose logits are in memory at a time


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the decoder, as its configuration states them."""

    layers: int
    heads: HeadShape
    theta: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `ids` and `positions` [tokens]; those at `places` precede `targets`, whose losses have `weights`."""

    ids: Tensor
    positions: Tensor
    segments: Segments
    places: Tensor
    targets: Tensor
    weights: Tensor


class Group:
    """Projections of one input: frozen weights [outputs, inputs], and A [rank, inputs], B [outputs, rank] of each.

    `merged`, `downs` and `ups` are what the network computes with; `merge` brings them up to date.
    """

    def __init__(self, names: Sequence[str], frozen: Sequence[Tensor], rank: int, scale: float) -> None:
        self.names = tuple(names)
        self.frozen = torch.cat(tuple(frozen))
        self.scale = scale
        self.rank = rank
        ends = torch.tensor([len(one) for one in frozen]).cumsum(0).tolist()
        self.spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
        inputs = self.frozen.shape[1]
        self.a = torch.empty(len(names) * rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5)
        self.b = torch.zeros(len(self.frozen), rank)
        self.merged = self.frozen.clone()
        self.downs, self.ups = self.a.to(self.frozen.dtype), self.b.to(self.frozen.dtype)

    def prepare(self) -> None:
        """Compute `downs` and `ups`."""
        self.downs = self.a.to(self.frozen.dtype)
        self.ups = (self.b * self.scale).to(self.frozen.dtype)

    def merge(self) -> None:
        """Compute what depends on A and B."""
        self.prepare()
        for number, (first, last) in enumerate(self.spans):
            low = self.a[number * self.rank : (number + 1) * self.rank]
            change = torch.addmm(self.frozen[first:last].float(), self.b[first:last], low, alpha=self.scale)
            self.merged[first:last].copy_(change)


class Gradients:
    """Sums of the gradients of every group's A and B, in float32."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.pairs = {id(group): (torch.zeros_like(group.a), torch.zeros_like(group.b)) for group in groups}

    def of(self, group: Group) -> tuple[Tensor, Tensor]:
        """The sums of one group."""
        return self.pairs[id(group)]

    def clear(self) -> None:
        """Set all sums to zero."""
        for pair in self.pairs.values():
            for tensor in pair:
                tensor.zero_()


class _Project(Function):
    """x [tokens, inputs] times the merged weight of a group; adds the gradients of its A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, gradients: Gradients | None) -> Tensor:
        ctx.x, ctx.group, ctx.gradients = x, group, gradients
        return F.linear(x, group.merged)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        group, (outer,) = ctx.group, given
        of_a, of_b = ctx.gradients.of(group)
        low = F.linear(ctx.x, group.downs)
        inner = torch.cat([outer[:, first:last] @ group.ups[first:last] for first, last in group.spans], 1)
        of_a += inner.T @ ctx.x
        for number, (first, last) in enumerate(group.spans):
            of_b[first:last] += outer[:, first:last].T @ low[:, number * group.rank : (number + 1) * group.rank]
        return outer @ group.merged, None, None


class _Norm(Function):
    """RMSNorm of a float32 row, in the type of its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.scale = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt_()
        ctx.x, ctx.weight = x, weight
        return (x * ctx.scale).to(weight.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        normal = ctx.x * ctx.scale
        outer = given[0].float() * ctx.weight.float()
        inner = (outer * normal).mean(-1, keepdim=True)
        return outer.sub_(normal.mul_(inner)).mul_(ctx.scale), None, None


class _Gate(Function):
    """silu(gates) * ups of [tokens, gates | ups]."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:
        ctx.joined = joined
        gates, ups = joined.chunk(2, -1)
        return F.silu(gates).mul_(ups)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        gates, ups = ctx.joined.chunk(2, -1)
        joined = torch.empty_like(ctx.joined)
        of_gates, of_ups = joined.chunk(2, -1)
        torch.mul(given[0], F.silu(gates), out=of_ups)
        of_gates.copy_(torch.ops.aten.silu_backward(given[0] * ups, gates))
        return joined


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the targets of a row: the sum of their weighted losses, and which are the most probable token."""

    loss: float
    right: Tensor


class _Loss(Function):
    """Weighted sum of the cross entropies of [targets, width]; its gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, embedding: Tensor, row: Row, right: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        gradients = []
        parts = (x.split(CHUNK), row.targets.split(CHUNK), row.weights[:, None].split(CHUNK))
        for rows, wanted, weights in zip(*parts, strict=True):
            logits = F.linear(rows, embedding).float()
            right.append(logits.argmax(-1) == wanted)
            logits = logits.log_softmax(-1)
            picked = wanted[:, None]
            total -= (logits.gather(1, picked) * weights).sum()
            logits = logits.exp_().scatter_add_(1, picked, torch.full(picked.shape, -1.0)).mul_(weights)
            gradients.append(logits.to(rows.dtype) @ embedding)
        ctx.gradient = torch.cat(gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient * given[0].to(ctx.gradient.dtype), None, None, None


class Network:
    """The decoder. `groups` holds the adapter's parameters by (layer, number in GROUPS)."""

    def __init__(
        self, weights: Mapping[str, Tensor], shape: Shape, rank: int, alpha: float, dtype: torch.dtype
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.rank = rank
        self.alpha = alpha
        self.embedding = weights["model.embed_tokens.weight"].to(dtype)
        self.final_norm = weights["model.norm.weight"].to(dtype)
        self.norms: list[tuple[Tensor, Tensor]] = []
        self.groups: list[tuple[Group, ...]] = []
        for layer in range(shape.layers):
            head = f"model.layers.{layer}"
            names = ("input_layernorm", "post_attention_layernorm")
            first, second = (weights[f"{head}.{name}.weight"].to(dtype) for name in names)
            self.norms.append((first, second))
            self.groups.append(
                tuple(
                    Group(
                        names,
                        [weights[f"{head}.{module_of(name)}.weight"].to(dtype) for name in names],
                        rank,
                        alpha / rank,
                    )
                    for names in GROUPS
                )
            )

    def all_groups(self) -> list[Group]:
        """Every group, by layer."""
        return [group for groups in self.groups for group in groups]

    def merge(self) -> None:
        """Bring all merged weights up to date."""
        for group in self.all_groups():
            group.merge()

    def run(self, row: Row, gradients: Gradients | None = None, loss_scale: float = 1.0) -> Scores:
        """Compute a row; with `gradients` add those of `loss_scale` times the sum of its losses."""
        right: list[Tensor] = []
        with torch.set_grad_enabled(gradients is not None):
            hidden = self._hidden(row, gradients)
            rows = _Norm.apply(hidden[row.places], self.final_norm, self.shape.epsilon)
            loss = _Loss.apply(rows, self.embedding, row, right)
            if gradients is not None:
                torch.autograd.backward(loss * loss_scale)
        return Scores(float(loss.detach()), torch.cat(right))

    def _hidden(self, row: Row, gradients: Gradients | None) -> Tensor:
        shape, epsilon = self.shape, self.shape.epsilon
        rotation = Rotation.at(row.positions, shape.heads.size, shape.theta)
        hidden = self.embedding[row.ids].float().requires_grad_(gradients is not None)
        for (first, second), (attend, output, widen, narrow) in zip(self.norms, self.groups, strict=True):
            joined = _Project.apply(_Norm.apply(hidden, first, epsilon), attend, gradients)
            mixed = SegmentAttention.apply(joined, rotation, row.segments, shape.heads)
            hidden = hidden + _Project.apply(mixed, output, gradients)
            gated = _Gate.apply(_Project.apply(_Norm.apply(hidden, second, epsilon), widen, gradients))
            hidden = hidden + _Project.apply(gated, narrow, gradients)
        return hidden


def module_of(name: str) -> str:
    """A projection with the block of the layer that it belongs to."""
    return f"{BLOCK.get(name, 'mlp')}.{name}"
