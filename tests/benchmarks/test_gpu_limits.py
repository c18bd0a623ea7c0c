"""Limits that speeds on a GPU are compared with; one too low would claim what no card did."""

import pytest

from benchmarks.checkpoint import config_of
from benchmarks.gpu_limits import prompt_operations, sheet_bytes_per_s


def test_a_prompt_takes_two_operations_a_weight_and_token_and_its_attention() -> None:
    weights = 36 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 12288)  # Qwen3-8B without its embeddings
    attention = 36 * 4 * 4096 * 2000 * 2001 / 2
    expected = 2 * 2000 * weights + attention + 2 * 4096 * 151_936
    assert prompt_operations(config_of("8B"), 2000) == pytest.approx(expected)


def test_a_card_has_the_bandwidth_of_its_own_form() -> None:
    assert sheet_bytes_per_s("NVIDIA H100 80GB HBM3") == 3.35e12
    assert sheet_bytes_per_s("NVIDIA H100 PCIe") == 2.0e12
    assert sheet_bytes_per_s("NVIDIA H200") == 4.8e12
    assert sheet_bytes_per_s("cpu") == 0.0
