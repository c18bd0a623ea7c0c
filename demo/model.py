"""The network in plain torch, with the weights of transformers' Qwen3ForCausalLM, and its configuration.

Training uses this version because it computes logits only where a loss is taken and compiles to fewer passes over
memory; a test compares its logits with those of transformers.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network, named as in config.json."""

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 7
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 32
    max_position_embeddings: int = 8192
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-6


class Norm(nn.Module):
    """Root-mean-square normalisation with a learnt scale."""

    def __init__(self, size: int, eps: float, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), scale))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Projection(nn.Module):
    """A matrix kept in float32 and used in the type of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).normal_(std=inputs**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Rotation(nn.Module):
    """Rotary position embedding."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = Projection(shape.hidden_size, queries)
        self.k_proj = Projection(shape.hidden_size, keys)
        self.v_proj = Projection(shape.hidden_size, keys)
        self.o_proj = Projection(queries, shape.hidden_size)
        # Normalisation bounds the attention scores; the scale lets a head attend to a single token.
        self.q_norm = Norm(shape.head_dim, shape.rms_norm_eps, 1.6)
        self.k_norm = Norm(shape.head_dim, shape.rms_norm_eps, 1.6)
        self.rotate = Rotation()

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [batch, heads, tokens, head_dim] of x [batch, tokens, hidden].

        cos, sin: [tokens, head_dim / 2].
        """
        batch, tokens, _ = x.shape
        split = (batch, tokens, -1, self.shape.head_dim)
        query = self.rotate(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), cos, sin)
        key = self.rotate(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(split).transpose(1, 2)
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


class FeedForward(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Projection(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Projection(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Projection(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.after_attention(x, attend(*self.before_attention(x, cos, sin)))

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, layers and final norm; named as in Qwen3Model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.layers = nn.ModuleList([Layer(shape) for _ in range(shape.num_hidden_layers)])
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)


class DemoModel(nn.Module):
    """The network; `state_dict()` has the names of Qwen3ForCausalLM with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            nn.init.zeros_(layer.self_attn.o_proj.weight)  # every layer starts as the identity
            nn.init.zeros_(layer.mlp.down_proj.weight)

    def compile_pieces(self) -> None:
        """Compile the parts that take several passes over memory: 40 % more tokens a second on a CPU."""
        for module in self.modules():
            if isinstance(module, (Norm, Rotation, FeedForward)):
                module.compile(dynamic=True)

    def hidden(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the hidden states [batch, tokens, hidden] of ids [batch, tokens], computed in dtype."""
        cos, sin = rotations(ids.shape[1], self.shape)
        x = self.model.embed_tokens(ids).to(dtype)
        for layer in self.model.layers:
            x = layer(x, cos.to(dtype), sin.to(dtype))
        return self.model.norm(x)

    def forward(self, ids: Tensor, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return logits of the next token at the flat `positions` of ids: [num_positions, vocab]."""
        x = self.hidden(ids, dtype).flatten(0, 1)[positions]
        return F.linear(x, self.model.embed_tokens.weight.to(dtype)).float()


def rotations(tokens: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary angles, each [tokens, head_dim / 2]."""
    steps = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.arange(tokens)[:, None] / shape.rope_theta ** steps[None]
    return angles.cos(), angles.sin()


def attend(query: Tensor, key: Tensor, value: Tensor, tile: int = 128) -> Tensor:
    """Causal attention of tensors [batch, heads, tokens, head_dim].

    Twice as fast on a CPU, backward included, as torch's fused kernel at these sizes: a tile of queries is multiplied
    only with the keys up to its end, in plain matrix products.
    """
    batch, heads, tokens, size = query.shape
    query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    mixed = []
    for start in range(0, tokens, tile):
        end = min(tokens, start + tile)
        mask = torch.full((end - start, end), float("-inf"), dtype=query.dtype).triu(1 + start)
        scores = torch.baddbmm(mask, query[:, start:end], key[:, :end].mT, alpha=size**-0.5)
        mixed.append(scores.softmax(-1) @ value[:, :end])
    return torch.cat(mixed, 1).view(batch, heads, tokens, size)


def config_json(shape: Shape, end_of_turn: int, end_of_text: int) -> dict[str, Any]:
    """Return config.json of the exported model."""
    sizes = asdict(shape)
    theta = sizes.pop("rope_theta")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "eos_token_id": end_of_turn,
        "pad_token_id": end_of_text,
        "bos_token_id": None,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        **sizes,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
    }
