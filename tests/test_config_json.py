"""Context length from config.json, by the rules of transformers."""

from typing import Any

import pytest

from server.config_json import context_length


@pytest.mark.parametrize(
    "config, length",
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 262144}, "model_type": "qwen3_5"}, 262144),
        ({}, None),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "mrope", "mrope_section": [1]}}, 4096),
    ],
)
def test_context_length(config: dict[str, Any], length: int | None) -> None:
    """Too short refuses requests that fit; too long exceeds the model's positions."""
    assert context_length(config) == length
