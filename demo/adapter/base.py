"""The base model as a network with a new adapter."""

from pathlib import Path

import torch

from demo.adapter.attention import HeadShape
from demo.adapter.network import Network, Shape
from server.gguf.config import model_config
from server.gguf.header import read_header
from server.model.loading.gguf_weights import GgufWeights


def open_network(base: Path, rank: int, alpha: float, dtype: torch.dtype, kind: type[Network] = Network) -> Network:
    """The base, a GGUF file of the Llama architecture, with a new adapter."""
    config = model_config(read_header(base))
    heads = HeadShape(config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])
    rope, layers = config["rope_parameters"]["rope_theta"], config["num_hidden_layers"]
    return kind(GgufWeights(base, dtype), Shape(layers, heads, rope, config["rms_norm_eps"]), rank, alpha, dtype)
