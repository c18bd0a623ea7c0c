"""A decoder's forward in few ops, on the weights that transformers or `model.plain` loaded.

transformers' layers take some 60 ops each, and as many Python calls around them. On a small model, or for one
token of a larger one, that is most of the step. The models listed here differ in nothing but biases, norms of queries
and keys, and how the MLP is made, so that one form computes them all; every other model runs as transformers wrote it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.model.attention.base import AttentionStep
from server.model.layers.packed_linear import MergedProjection
from server.model.layers.recurrent import RecurrentStep

COMPACT_MODEL_TYPES = ("llama", "qwen2", "qwen3", "qwen3_moe")  # model types
# [num_tokens, inputs] -> [num_tokens, outputs]. Of modules it is their `forward`: calling them themselves, through
# hooks that nobody set, costs as much as a small operation.
Projection = Callable[[Tensor], Tensor]
# Tokens of a long prompt that a CPU norms, rotates and feeds forward at a time: what they make stays in its caches.
CHUNK_TOKENS = 512


class Backbone(Protocol):
    """Everything between the token ids and the output head."""

    def __call__(self, ids: Tensor, positions: Tensor, paged: AttentionStep, recurrent: RecurrentStep | None) -> Tensor:
        """Ids and positions [num_tokens] of many rows, one after the other -> hidden states [num_tokens, hidden]."""


class LayerOps(Protocol):
    """What lies between the products; on a GPU the module fused_triton.py is one."""

    def add_rms_norm(self, hidden: Tensor, added: Tensor | None, norm: "RmsNorm") -> Tensor:
        """[num_tokens, hidden] -> its norm, after what is added, if anything is, has been added to it in place."""

    def norm_and_rotate(self, heads: Tensor, norms: "HeadNorms | None", cos: Tensor, sin: Tensor) -> Tensor:
        """Queries and keys [num_tokens, heads, head_dim] -> the same, normed and rotated by [num_tokens, 1, head_dim].

        Rotating a head is cos * head + sin * (its halves swapped); the sine of the first half carries the sign.
        """

    def silu_and_mul(self, both: Tensor) -> Tensor:
        """Gates and what they let through, [num_tokens, 2 * size] -> [num_tokens, size], by SiLU."""


def open_backbone(decoder: Any) -> Backbone:
    """The decoder of a model that transformers loaded, its linear layers packed or not, as a Backbone."""
    text = decoder.config
    if text.model_type not in COMPACT_MODEL_TYPES or not rotates_whole_heads(decoder):
        return TransformersBackbone(decoder)
    return CompactBackbone(decoder)


class TransformersBackbone:
    """The decoder as transformers wrote it."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = decoder

    def __call__(self, ids: Tensor, positions: Tensor, paged: AttentionStep, recurrent: RecurrentStep | None) -> Tensor:
        """As `Backbone`."""
        output = self._decoder(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            paged=paged,
            recurrent=recurrent,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


class CompactBackbone:
    """The same numbers in fewer ops: equal in float32 to its rounding, in bf16 with fewer roundings between."""

    def __init__(self, decoder: Any, ops: "LayerOps | None" = None) -> None:
        """`ops`: torch's own if none are given."""
        self.ops = ops or TorchOps()
        self._embedding = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self.layers = [DecoderLayer(layer, self.ops) for layer in decoder.layers]
        self.norm = RmsNorm(decoder.norm)
        half = decoder.layers[0].self_attn.head_dim // 2
        self._signs = torch.ones(2 * half, dtype=self.norm.weight.dtype, device=self.norm.weight.device)
        self._signs[:half] = -1

    def __call__(self, ids: Tensor, positions: Tensor, paged: AttentionStep, recurrent: RecurrentStep | None) -> Tensor:
        """As `Backbone`."""
        hidden: Tensor = self._embedding(ids)
        cos, sin = self._rotary(hidden, positions.unsqueeze(0))
        # The same for every head and every layer.
        turn = cos[0].unsqueeze(1), (sin[0] * self._signs).unsqueeze(1)
        stream = ResidualStream(hidden, self.ops)
        for index, layer in enumerate(self.layers):
            layer.forward(index, stream, turn, paged)
        return stream.normed(self.norm)


class ResidualStream:
    """The residual stream [num_tokens, hidden], and what is still to be added to it: sums and norms are one operation.

    Whoever adds hands over: a tensor more that is kept through a layer is memory at the widest place of a step.
    """

    def __init__(self, hidden: Tensor, ops: LayerOps) -> None:
        """`hidden` is overwritten."""
        self.hidden = hidden
        self.added: Tensor | None = None
        self._ops = ops

    def normed(self, norm: "RmsNorm") -> Tensor:
        """The norm of the whole, [num_tokens, hidden]."""
        added, self.added = self.added, None
        return self._ops.add_rms_norm(self.hidden, added, norm)


class TorchOps:
    """As `LayerOps`, by torch's own."""

    def add_rms_norm(self, hidden: Tensor, added: Tensor | None, norm: "RmsNorm") -> Tensor:
        """As `LayerOps.add_rms_norm`."""
        return norm(hidden if added is None else hidden.add_(added))

    def norm_and_rotate(self, heads: Tensor, norms: "HeadNorms | None", cos: Tensor, sin: Tensor) -> Tensor:
        """As `LayerOps.norm_and_rotate`."""
        heads = norms(heads) if norms else heads
        return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)

    def silu_and_mul(self, both: Tensor) -> Tensor:
        """As `LayerOps.silu_and_mul`."""
        gate, up = both.chunk(2, -1)
        return functional.silu(gate) * up


class RmsNorm:
    """RMS norm over the last dimension."""

    def __init__(self, norm: Any) -> None:
        self.weight: Tensor = norm.weight.detach()
        self._size = list(self.weight.shape)
        self.epsilon: float = norm.variance_epsilon

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., size] -> the same."""
        return functional.rms_norm(hidden, self._size, self.weight, self.epsilon)


class HeadNorms:
    """The norms of each query head and each key head, in one."""

    def __init__(self, attention: Any, heads: int, kv_heads: int) -> None:
        query, key = attention.q_norm, attention.k_norm
        assert query.variance_epsilon == key.variance_epsilon, "one norm stands for both"
        self.epsilon: float = query.variance_epsilon
        weights = query.weight.detach().expand(heads, -1), key.weight.detach().expand(kv_heads, -1)
        self.weight = torch.cat(weights)

    def __call__(self, turned: Tensor) -> Tensor:
        """[num_tokens, heads + kv_heads, head_dim] -> the same."""
        return functional.rms_norm(turned, turned.shape[-1:], None, self.epsilon).mul_(self.weight)


class DecoderLayer:
    """One decoder layer over a flat line of tokens."""

    def __init__(self, layer: Any, ops: LayerOps) -> None:
        attention = layer.self_attn
        self._ops = ops
        self.head_dim: int = attention.head_dim
        self._heads: int = attention.config.num_attention_heads
        self._kv_heads: int = attention.config.num_key_value_heads
        self._scaling: float = attention.scaling
        self._attention_norm, self._mlp_norm = RmsNorm(layer.input_layernorm), RmsNorm(layer.post_attention_layernorm)
        self._project = _merged((attention.q_proj, attention.k_proj, attention.v_proj))
        has_norms = hasattr(attention, "q_norm")
        self._head_norms = HeadNorms(attention, self._heads, self._kv_heads) if has_norms else None
        self._output: Projection = attention.o_proj.forward
        is_dense = hasattr(layer.mlp, "gate_proj")
        self._mlp: Projection = Mlp(layer.mlp, ops) if is_dense else BatchedModule(layer.mlp)
        on_cpu = self._attention_norm.weight.device.type == "cpu"
        self._chunk_tokens = CHUNK_TOKENS if on_cpu and is_dense else sys.maxsize

    def forward(self, index: int, stream: ResidualStream, turn: tuple[Tensor, Tensor], paged: AttentionStep) -> None:
        """Move the stream on. `index` is the layer's among the model's."""
        stream.added = self._attend(index, stream, turn, paged)
        if stream.hidden.shape[0] <= self._chunk_tokens:
            stream.added = self._mlp(stream.normed(self._mlp_norm))
            return
        stream.hidden += stream.added
        stream.added = None
        for chunk in torch.split(stream.hidden, self._chunk_tokens):
            chunk += self._mlp(self._mlp_norm(chunk))

    def _attend(self, index: int, stream: ResidualStream, turn: tuple[Tensor, Tensor], paged: AttentionStep) -> Tensor:
        num_tokens, num_turned = stream.hidden.shape[0], self._heads + self._kv_heads
        together = self._project(stream.normed(self._attention_norm)).view(num_tokens, -1, self.head_dim)
        turned, value = together[:, :num_turned], together[:, num_turned:]
        if num_tokens <= self._chunk_tokens:
            turned = self._ops.norm_and_rotate(turned, self._head_norms, *turn)
        else:
            chunks = (torch.split(one, self._chunk_tokens) for one in (turned, *turn))
            for chunk, cos, sin in zip(*chunks, strict=True):
                chunk.copy_(self._ops.norm_and_rotate(chunk, self._head_norms, cos, sin))
        query, key = turned[:, : self._heads], turned[:, self._heads :]
        attended = paged.attend(index, query, key, value, self._scaling)
        return self._output(attended.reshape(num_tokens, -1))


class Mlp:
    """Gate and up in one product, then down."""

    def __init__(self, mlp: Any, ops: LayerOps) -> None:
        self._ops = ops
        self._open = _merged((mlp.gate_proj, mlp.up_proj))
        self._down: Projection = mlp.down_proj.forward
        self._activate: Projection | None = None if is_silu(mlp.act_fn) else mlp.act_fn

    def __call__(self, hidden: Tensor) -> Tensor:
        """[num_tokens, hidden] -> the same."""
        both = self._open(hidden)
        if self._activate is None:
            return self._down(self._ops.silu_and_mul(both))
        gate, up = both.chunk(2, -1)
        return self._down(self._activate(gate) * up)


class BatchedModule:
    """A module that takes [rows, num_tokens, hidden], such as a router with its experts."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, hidden: Tensor) -> Tensor:
        """[num_tokens, hidden] -> the same."""
        result: Tensor = self._module(hidden.unsqueeze(0))[0]
        return result


class SeparateProjections:
    """Products of one input that could not be made one, such as quantized ones."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[num_tokens, inputs] -> [num_tokens, all outputs]."""
        return torch.cat([module(hidden) for module in self._modules], -1)


def _merged(modules: Sequence[Any]) -> Projection:
    first = modules[0]
    return first.packed.forward if isinstance(first, MergedProjection) else SeparateProjections(modules)


def is_silu(activation: Any) -> bool:
    """Whether this is `x * sigmoid(x)`, of torch or of transformers."""
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def rotates_whole_heads(decoder: Any) -> bool:
    """Whether every dimension of a head is rotated."""
    return bool(2 * decoder.rotary_emb.inv_freq.numel() == decoder.layers[0].self_attn.head_dim)
