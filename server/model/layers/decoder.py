"""Decoder forward in few operations, on weights loaded by transformers or by `loading.plain`.

transformers' layers take some 60 operations each, with as many Python calls around them: most of the time of a step on
a small model, or for one token of a larger one. The model types listed here differ only in biases, norms of queries and
keys, and the MLP, so one implementation serves them all; every other model runs transformers' own code.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.model.adapters.step import AdaptedModel, StepAdapters
from server.model.adapters.torch_adapter import AdapterHooks, LayerAdapters, TorchAdapter
from server.model.adapters.weights import AdapterWeights
from server.model.attention.base import AttentionStep
from server.model.attention.gpu import TiledStep
from server.model.layers.packed_linear import MergedProjection
from server.model.layers.recurrent import RecurrentStep

COMPACT_MODEL_TYPES = ("llama", "qwen2", "qwen3", "qwen3_moe")  # model types
# [num_tokens, inputs] -> [num_tokens, outputs]. For modules it is their `forward`: `__call__`, which looks for hooks,
# costs as much as a small operation.
Projection = Callable[[Tensor], Tensor]
# Ids and positions [1] -> logits [1, vocab]: a decode step of one row on a GPU.
OneRowStep = Callable[[Tensor, Tensor, TiledStep], Tensor]
# Tokens that a CPU norms, rotates and feeds forward at a time, so that intermediate results stay in its caches.
CHUNK_TOKENS = 512


class Backbone(Protocol):
    """Token ids -> hidden states: the model without its output head."""

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        paged: AttentionStep,
        recurrent: RecurrentStep | None,
        adapters: StepAdapters | None = None,
    ) -> Tensor:
        """Ids and positions [num_tokens], all rows concatenated -> hidden states [num_tokens, hidden]."""

    def adapt(self, weights: AdapterWeights) -> AdaptedModel:
        """An adapter as this backbone computes it; may be called in another thread than steps."""


class LayerOps(Protocol):
    """Operations between the matrix products; the module fused_triton.py implements them for GPUs."""

    def add_rms_norm(self, hidden: Tensor, added: Tensor | None, norm: "RmsNorm") -> Tensor:
        """[num_tokens, hidden] -> its RMS norm, after `added`, if any, has been added to `hidden` in place."""

    def norm_and_rotate(self, heads: Tensor, norms: "HeadNorms | None", cos: Tensor, sin: Tensor) -> Tensor:
        """Norm and rotate queries and keys [num_tokens, heads, head_dim] by cos and sin [num_tokens, 1, head_dim].

        Rotation is cos * head + sin * (head with its halves swapped); the first half of sin is negated.
        """

    def silu_and_mul(self, both: Tensor) -> Tensor:
        """Gate and up projections [num_tokens, 2 * size] -> silu(gate) * up [num_tokens, size]."""


def open_backbone(decoder: Any) -> Backbone:
    """Backbone over a decoder loaded by transformers, with packed linear layers or without."""
    text = decoder.config
    if text.model_type not in COMPACT_MODEL_TYPES or not rotates_whole_heads(decoder):
        return TransformersBackbone(decoder)
    return CompactBackbone(decoder)


class TransformersBackbone:
    """transformers' own decoder."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._hooks = AdapterHooks(decoder)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        paged: AttentionStep,
        recurrent: RecurrentStep | None,
        adapters: StepAdapters | None = None,
    ) -> Tensor:
        """As `Backbone`."""
        if adapters is not None:
            self._hooks.prepare()
        with self._hooks.using(adapters):
            output = self._decoder(
                input_ids=ids.unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                use_cache=False,
                paged=paged,
                recurrent=recurrent,
                adapters=self._hooks,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def adapt(self, weights: AdapterWeights) -> AdaptedModel:
        """As `Backbone`."""
        weight = self._decoder.norm.weight
        return TorchAdapter(weights, weight.dtype, weight.device)


class CompactBackbone:
    """The same result in fewer operations: equal up to rounding in float32, with fewer roundings in bf16."""

    def __init__(self, decoder: Any, ops: "LayerOps | None" = None) -> None:
        """`ops`: by default those of torch."""
        self.ops = ops or TorchOps()
        self._embedding = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self.layers = [DecoderLayer(layer, self.ops) for layer in decoder.layers]
        self.norm = RmsNorm(decoder.norm)
        half = decoder.layers[0].self_attn.head_dim // 2
        self._signs = torch.ones(2 * half, dtype=self.norm.weight.dtype, device=self.norm.weight.device)
        self._signs[:half] = -1

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        paged: AttentionStep,
        recurrent: RecurrentStep | None,
        adapters: StepAdapters | None = None,
    ) -> Tensor:
        """As `Backbone`."""
        hidden: Tensor = self._embedding(ids)
        angles = self.angles(hidden, positions)
        stream = ResidualStream(hidden, self.ops)
        for index, layer in enumerate(self.layers):
            layer.forward(index, stream, angles, paged, adapters)
        return stream.normed(self.norm)

    def angles(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin of the tokens' rotations, the same for every head and every layer."""
        cos, sin = self._rotary(hidden, positions.unsqueeze(0))
        return cos[0].unsqueeze(1), (sin[0] * self._signs).unsqueeze(1)

    def adapt(self, weights: AdapterWeights) -> AdaptedModel:
        """As `Backbone`."""
        return TorchAdapter(weights, self.norm.weight.dtype, self.norm.weight.device)


class ResidualStream:
    """The residual stream [num_tokens, hidden] with one pending addition, so that sum and norm are one operation.

    The caller passes ownership of `added`: a tensor kept alive through a layer would add to the step's peak memory.
    """

    def __init__(self, hidden: Tensor, ops: LayerOps) -> None:
        """`hidden` will be overwritten."""
        self.hidden = hidden
        self.added: Tensor | None = None
        self._ops = ops

    def normed(self, norm: "RmsNorm") -> Tensor:
        """Apply the pending addition; returns the norm of the sum, [num_tokens, hidden]."""
        added, self.added = self.added, None
        return self._ops.add_rms_norm(self.hidden, added, norm)


class TorchOps:
    """`LayerOps` by torch operations."""

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
    """RMS norms of all query heads and key heads, in one operation."""

    def __init__(self, attention: Any, heads: int, kv_heads: int) -> None:
        query, key = attention.q_norm, attention.k_norm
        assert query.variance_epsilon == key.variance_epsilon, "queries and keys share one epsilon"
        self.epsilon: float = query.variance_epsilon
        weights = query.weight.detach().expand(heads, -1), key.weight.detach().expand(kv_heads, -1)
        self.weight = torch.cat(weights)

    def __call__(self, heads: Tensor) -> Tensor:
        """[num_tokens, heads + kv_heads, head_dim] -> the same."""
        return functional.rms_norm(heads, heads.shape[-1:], None, self.epsilon).mul_(self.weight)


class DecoderLayer:
    """One decoder layer over the concatenated tokens of all rows."""

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
        self._mlp: Mlp | BatchedModule = Mlp(layer.mlp, ops) if is_dense else BatchedModule(layer.mlp)
        on_cpu = self._attention_norm.weight.device.type == "cpu"
        self._chunk_tokens = CHUNK_TOKENS if on_cpu and is_dense else sys.maxsize

    def forward(
        self,
        index: int,
        stream: ResidualStream,
        angles: tuple[Tensor, Tensor],
        paged: AttentionStep,
        adapters: StepAdapters | None = None,
    ) -> None:
        """Advance the stream by this layer. `index`: the layer's index in the model; `angles`: cos and sin."""
        own = None if adapters is None else LayerAdapters(adapters, index)
        stream.added = self._attend(index, stream, angles, paged, own)
        if stream.hidden.shape[0] <= self._chunk_tokens:
            stream.added = self._mlp(stream.normed(self._mlp_norm), own)
            return
        stream.hidden += stream.added
        stream.added = None
        for number, chunk in enumerate(torch.split(stream.hidden, self._chunk_tokens)):
            of_chunk = None if own is None else own.window(number * self._chunk_tokens, len(chunk))
            chunk += self._mlp(self._mlp_norm(chunk), of_chunk)

    def _attend(
        self,
        index: int,
        stream: ResidualStream,
        angles: tuple[Tensor, Tensor],
        paged: AttentionStep,
        adapters: LayerAdapters | None,
    ) -> Tensor:
        num_tokens, num_rotated = stream.hidden.shape[0], self._heads + self._kv_heads
        projected = self._projected(stream.normed(self._attention_norm), adapters)
        rotated, value = projected[:, :num_rotated], projected[:, num_rotated:]
        if num_tokens <= self._chunk_tokens:
            rotated = self._ops.norm_and_rotate(rotated, self._head_norms, *angles)
        else:
            chunks = (torch.split(one, self._chunk_tokens) for one in (rotated, *angles))
            for chunk, cos, sin in zip(*chunks, strict=True):
                chunk.copy_(self._ops.norm_and_rotate(chunk, self._head_norms, cos, sin))
        query, key = rotated[:, : self._heads], rotated[:, self._heads :]
        attended = paged.attend(index, query, key, value, self._scaling).reshape(num_tokens, -1)
        output = self._output(attended)
        if adapters is not None:
            adapters.add(attended, output, {"self_attn.o_proj": output.shape[1]})
        return output

    def _projected(self, normed: Tensor, adapters: LayerAdapters | None) -> Tensor:
        """Queries, keys and values of all heads, [num_tokens, heads, head_dim]."""
        projected = self._project(normed)
        if adapters is not None:
            queries, keys = self._heads * self.head_dim, self._kv_heads * self.head_dim
            sizes = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
            adapters.add(normed, projected, sizes)
        return projected.view(len(normed), -1, self.head_dim)


class Mlp:
    """MLP: gate and up projections in one product, then down."""

    def __init__(self, mlp: Any, ops: LayerOps) -> None:
        self._ops = ops
        self._open = _merged((mlp.gate_proj, mlp.up_proj))
        self._down: Projection = mlp.down_proj.forward
        self._activate: Projection | None = None if is_silu(mlp.act_fn) else mlp.act_fn

    def __call__(self, hidden: Tensor, adapters: LayerAdapters | None = None) -> Tensor:
        """[num_tokens, hidden] -> the same."""
        both = self._open(hidden)
        if adapters is not None:
            inner = both.shape[1] // 2
            adapters.add(hidden, both, {"mlp.gate_proj": inner, "mlp.up_proj": inner})
        if self._activate is None:
            opened = self._ops.silu_and_mul(both)
        else:
            gate, up = both.chunk(2, -1)
            opened = self._activate(gate) * up
        output = self._down(opened)
        if adapters is not None:
            adapters.add(opened, output, {"mlp.down_proj": output.shape[1]})
        return output


class BatchedModule:
    """Adapter for a module that takes [rows, num_tokens, hidden], such as a router with its experts."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, hidden: Tensor, adapters: LayerAdapters | None = None) -> Tensor:
        """[num_tokens, hidden] -> the same; no adapter changes experts (`weights.MODULES`)."""
        result: Tensor = self._module(hidden.unsqueeze(0))[0]
        return result


class SeparateProjections:
    """Projections of one input that cannot be merged, such as quantized ones."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[num_tokens, inputs] -> [num_tokens, all outputs]."""
        return torch.cat([module(hidden) for module in self._modules], -1)


def _merged(modules: Sequence[Any]) -> Projection:
    first = modules[0]
    return first.packed.forward if isinstance(first, MergedProjection) else SeparateProjections(modules)


def is_silu(activation: Any) -> bool:
    """Whether this is SiLU, `x * sigmoid(x)`, of torch or of transformers."""
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def rotates_whole_heads(decoder: Any) -> bool:
    """Whether rotary positions rotate every dimension of a head."""
    return bool(2 * decoder.rotary_emb.inv_freq.numel() == decoder.layers[0].self_attn.head_dim)
